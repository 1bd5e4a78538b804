"""What an operator is: a typed configuration with a function from a batch of documents to verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from shunter.config.base import Config
from shunter.data.curation.pages import Pages

Keys = dict[str, np.ndarray]
Facts = dict[str, np.ndarray]  # columns of a batch


@dataclass(frozen=True)
class Rule:
    """A document leaves when its measure is below `low` or above `high`; None is no limit."""

    reason: str
    measure: str
    low: float | None = None
    high: float | None = None


@dataclass
class Verdicts:
    """Per document: the number of the reason in `reasons`, or -1 to keep it; the value that decided, and
    the limit that it missed; facts (columns) that stay with the kept ones; texts, where some changed.

    of: for a duplicate, the number of the document that stays, counted over the whole corpus; else -1.
    told: what else its record of removal says, as JSON values.
    """

    reasons: Sequence[str]
    reason: np.ndarray
    value: np.ndarray
    limit: np.ndarray
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    texts: list[str] | None = None
    counts: dict[str, int] = field(default_factory=dict)  # of what was edited inside documents
    of: np.ndarray | None = None
    told: Sequence[Mapping[str, Any]] | None = None

    @property
    def kept(self) -> np.ndarray:
        """bool per document."""
        return np.asarray(self.reason < 0)


class Operator(Config):
    """Judges documents, each by itself: no result depends on what else is in the batch.

    One of `judge` and `judge_with` is written by each operator. source: where its rules and the defaults of
    its options are published, "" for this project's; ours: options whose defaults are this project's even so.
    hint: where files that it reads may be had.
    """

    source: ClassVar[str] = ""
    ours: ClassVar[tuple[str, ...]] = ()
    hint: ClassVar[str] = ""

    def judge(self, pages: Pages) -> Verdicts:
        """The verdict on each document."""
        return self.judge_with(pages, {})

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        """The same with what is known of each document: its `url`, its `language`."""
        return self.judge(pages)

    def columns(self) -> dict[str, str]:
        """Facts that it gives to every document: column -> Arrow type."""
        return {}

    def files(self) -> list[str]:
        """Files of a person's that it reads, relative to the recipe; they are part of the job's identity."""
        return []

    def rooted(self, base: Path) -> Operator:
        """The same with those files found from the recipe's folder."""
        return self

    def ready(self) -> None:
        """Raise ShunterError when a package that it needs is not here."""

    @property
    def name(self) -> str:
        """What records of removal call it."""
        return str(getattr(self, "kind"))  # noqa: B009


class Barrier(Operator):
    """An operator that must know of every document before it judges one: for duplicates.

    Workers take the keys of each batch, one place settles them, workers judge with what was settled.
    """

    def keys(self, pages: Pages) -> Keys:
        """What of these documents the settlement needs. `rows`: int64 per document, how many rows of the
        other arrays are its own; without it, one each."""
        raise NotImplementedError

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        """The same with what is known of each document."""
        return self.keys(pages)

    def settle(self, keys: Any) -> Keys:
        """The settlement of all documents, from the keys of all in order (name -> array or column of the
        chunks' arrays); `number` is one. `room_of(keys)` says how much of them may be held at once.

        With `rows` among what is returned, the other arrays have so many rows a document; else one each.
        """
        raise NotImplementedError

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        """The verdicts on a batch, given its part of the settlement."""
        raise NotImplementedError


class Filter(Operator):
    """An operator of measures and rules; the first rule that a document fails is the reason."""

    def rules(self) -> Sequence[Rule]:
        """In the order in which they are tried."""
        raise NotImplementedError

    def measures(self, pages: Pages, exact: bool = False) -> Mapping[str, np.ndarray]:
        """One float per document and measure. Without `exact`, a value that its rule would let pass may be
        a bound that passes too."""
        raise NotImplementedError

    by_language: dict[str, dict[str, float | None]] = Field(
        {},
        description="Language -> reason -> limit in place of the option's; null: none. `limits` makes it.",
    )

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        rules = self.rules()
        if not self.by_language or "language" not in facts:
            return decide(rules, self.measures(pages), len(pages))
        verdicts = decide(rules, self.measures(pages, exact=True), len(pages), self._bounds(rules, facts))
        return verdicts

    def _bounds(self, rules: Sequence[Rule], facts: Facts) -> dict[str, np.ndarray]:
        """Reason -> a limit for each document, not a number where there is none."""
        names, inverse = np.unique(facts["language"], return_inverse=True)
        known = {limit for limits in self.by_language.values() for limit in limits}
        found = {}
        for rule in rules:
            bound = rule.high if rule.high is not None else rule.low
            if rule.reason not in known or bound is None:
                continue
            limits = [self.by_language.get(name, {}).get(rule.reason, bound) for name in names.tolist()]
            found[rule.reason] = np.array([np.nan if limit is None else limit for limit in limits])[inverse]
        return found


def decide(
    rules: Sequence[Rule],
    measures: Mapping[str, np.ndarray],
    size: int,
    bounds: Mapping[str, np.ndarray] | None = None,
) -> Verdicts:
    """Verdicts by the first rule that is not met. A measure or limit that is no number meets every rule.

    bounds: reason -> a limit for each document, in place of the rule's.
    """
    reason = np.full(size, -1, np.int16)
    value, limit = np.zeros(size), np.zeros(size)
    for number, rule in enumerate(rules):
        if rule.low is None and rule.high is None:
            continue
        measured = measures[rule.measure]
        for bound, fails in ((rule.low, np.less), (rule.high, np.greater)):
            if bound is None:
                continue
            own = np.broadcast_to((bounds or {}).get(rule.reason, np.float64(bound)), size)
            fresh = fails(measured, own) & (reason < 0)
            reason[fresh], value[fresh], limit[fresh] = number, measured[fresh], own[fresh]
    return Verdicts([rule.reason for rule in rules], reason, value, limit)


def ratio(parts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """parts / whole, not a number where the whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, parts / np.maximum(whole, 1e-300), np.nan)
