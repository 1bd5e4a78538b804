"""What a paper's module provides: arms over one recipe, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.recipe.artefact import Artefact

Samples = Mapping[str, float]  # metric -> value
Arm = Mapping[str, Artefact]  # job name -> what it published


@dataclass(frozen=True)
class Killed:
    """overrides: of what ran before. fault: what ends it; see shunter.launch.inject."""

    overrides: Sequence[str]
    fault: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A small measurement that supports or refutes a paper's claim.

    Each arm is `recipe` (or what `recipes` has for it) with the overrides that `arms(seed, short)` gives it;
    each arm runs once a seed, as jobs in the artefact store, so an interrupted experiment continues and arms
    share every job they have in common. `short` asks for a form that is quick and proves the machinery only.
    `measure` sees all arms of one seed at once (paired) and returns each arm's metrics; it never
    decides whether a claim holds. `table` gives the units of the metrics, in the order to print.
    `killed` arms begin under further overrides, lose a process in the middle, and go on under their own.
    """

    slug: str
    recipe: Path
    arms: Callable[[int, bool], Mapping[str, Sequence[str]]]
    seeds: Sequence[int]
    measure: Callable[[Mapping[str, Arm]], Mapping[str, Samples]]
    table: Mapping[str, str]
    recipes: Mapping[str, Path] = field(default_factory=dict)  # arms over another recipe
    apart: Sequence[str] = ()  # arms that differ in `how` alone: they get a store of their own
    killed: Mapping[str, Killed] = field(default_factory=dict)
    notes: Callable[[Mapping[str, Mapping[str, Any]]], Sequence[str]] = lambda verdicts: ()
