"""The fastest layouts of a question: all by formulas, the best of them by the event simulator.

Imports without torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from shunter.config.errors import ShunterError
from shunter.plan import placing
from shunter.plan.apart import best_apart
from shunter.plan.choices import Choices, Floats, Question
from shunter.plan.estimate import Estimate, estimate
from shunter.plan.fitting import FitsNowhere
from shunter.plan.leaner import leanest, rescued
from shunter.plan.reasons import why_none
from shunter.plan.score import Prediction
from shunter.plan.space import Fixed, space

Objective = Literal["time", "cost", "memory"]

FINALISTS = 32
SIMULATED = 1_500_000  # nodes of all simulated programs together
FRAMES = 3  # stages, schedules and micro-batches for which degrees of layers' and ends' own are looked for
DENSE = {"dp", "fsdp", "cp", "tp"}  # where all are fixed a layout is given
# Estimates beyond this times the best one are not looked at more closely. In six questions (4B to 47B, on 4
# to 16 devices of four kinds) what was fastest by simulation had an estimate of at most 1.12 times the least.
MARGIN = 1.35


@dataclass(frozen=True)
class Ranked:
    """A layout and why it is not the first: empty for the one that is. also: others that are predicted to
    take the same time and memory to all digits."""

    prediction: Prediction
    lost_because: str = ""
    also: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class Found:
    """plans: best first. considered: layouts whose time and memory were estimated; rejected: of them, those
    that do not fit. seconds: of the search. room: bytes that each rank was given."""

    question: Question
    plans: tuple[Ranked, ...]
    considered: int
    rejected: int
    seconds: float
    room: float
    objective: Objective = "time"
    fixed: Fixed = field(default_factory=dict)


def search(
    question: Question,
    *,
    fixed: Fixed | None = None,
    room: float | None = None,
    objective: Objective = "time",
    top: int = 5,
    finalists: int = FINALISTS,
    hints: bool = True,
) -> Found:
    """The `top` best layouts. room: bytes of each rank, by default all that the smallest device has.
    finalists: most layouts that are simulated. objective: `cost` looks at parts of the cluster too
    (`plan.parts`), and answers for the one whose step costs least; the others keep all devices, but for some
    of nodes whose sizes have too little in common.

    Raises ShunterError where what is fixed leaves no layout, and where none fits: with the smallest cluster
    of that kind in which one would, and the largest batch and row that fit in this one, unless `hints` is
    off: to find them takes longer than the search.
    """
    fixed = dict(fixed or {})
    try:
        if objective == "cost" or question.fabric.terrain is not None:
            from shunter.plan.parts import best_part  # which searches them

            return best_part(question, fixed, room, objective, top, finalists)
        return search_all(question, fixed, room, objective, top, finalists)
    except FitsNowhere as error:
        raise (error.explained() if hints else error) from None


def search_all(
    question: Question, fixed: Fixed, room: float | None, objective: Objective, top: int, finalists: int
) -> Found:
    """As `search`, with all devices."""
    begin = time.perf_counter()
    room = question.fabric.room(room)
    lean = objective == "memory"  # asked for with all that makes it so
    choices, found = _estimated(question, fixed, None if lean else room)
    fits = found.bytes <= room
    differ = _may_differ(question, fixed)
    scored = _scored(question, fixed, choices, found, fits, room, objective, finalists)
    looks = FRAMES if finalists == FINALISTS else 1
    if not scored and differ:
        scored = rescued(question, choices, found, room, fixed)
    elif differ and not lean:
        scored += best_apart(question, scored, room, looks, fixed)
    if scored and differ and lean:
        scored += leanest(question, choices, found, scored, room, fixed)
    if not scored:
        raise FitsNowhere(question, fixed, room, float(found.bytes.min()), apart=differ)
    scored.sort(key=lambda each: _worth(each, objective))
    best = scored[0]
    plans = [
        Ranked(each, "" if each is best else lost_because(each, best, objective), tuple(same))
        for each, *same in _merged(_different(scored))[:top]
    ]
    spent = time.perf_counter() - begin
    rejected = int((~fits).sum())
    return Found(question, tuple(plans), len(choices), rejected, spent, room, objective, dict(fixed))


def _may_differ(question: Question, fixed: Fixed) -> bool:
    """Whether layers and ends may have degrees of their own: not where all of a layout's are given."""
    given = fixed.keys() >= DENSE or fixed.get("layers") == "alike"
    return question.practice.layers and not given and fixed.get("recompute", "none") in ("none", "layer")


def _scored(
    question: Question,
    fixed: Fixed,
    choices: Choices,
    found: Estimate,
    fits: np.ndarray,
    room: float,
    objective: Objective,
    finalists: int,
) -> list[Prediction]:
    """Layouts that fit, the best first, in full; empty where there is none."""
    if not fits.any():
        return []
    lean = objective == "memory"
    # Those that need not compute anything again are there without it, too.
    order = _order(found, fits if "recompute" in fixed else fits & ~found.spare, objective)
    scored, tried = [], set()
    if question.fabric.terrain is not None:
        scored = placing.looked_at(question, choices, found, order, room, finalists)
        order = order[:0]  # that is all there is to look at
    for index in _finalists(question, choices, found, order, objective, finalists):
        tried.add(index)
        prediction = placing.scored(question, choices.take([index]), room, lean=lean)
        if prediction is not None:
            scored.append(prediction)
    if not scored:  # whole layers need a little more room than parts of them: go on until one fits
        for index in order:
            if int(index) in tried:
                continue
            prediction = placing.scored(question, choices.take([index]), room, lean=lean)
            if prediction is not None:
                scored.append(prediction)
                break
    scored.sort(key=lambda each: _worth(each, objective))
    return placing.improved(question, scored, room, finalists) if scored else []


def _estimated(question: Question, fixed: Fixed, room: float | None) -> tuple[Choices, Estimate]:
    choices = space(question, fixed)
    if (profile := question.profile) is not None:
        most = np.array([profile.most(tp) for tp in choices.tp.tolist()])
        choices = choices.take(choices.rows / choices.cp <= most)
    if not len(choices):
        why, mend = why_none(question, fixed)
        asked = ", ".join(f"{key} {value}" for key, value in fixed.items())
        asked = asked or f"a batch of {question.batch} rows of {question.row} tokens"
        raise ShunterError(f"no layout of {question.fabric.world} devices has {asked}: {why}", mend=mend)
    return choices, estimate(question, choices, room)


def _worth(prediction: Prediction, objective: Objective) -> tuple[float, float]:
    if objective == "memory":
        return prediction.fullest, prediction.seconds
    return prediction.seconds, prediction.fullest


def _different(scored: list[Prediction]) -> list[Prediction]:
    """The best of each grid, schedule and recomputation: those that differ in the size of a micro-batch or in
    the number of stages a rank alone tell little more."""
    found: dict[tuple[object, ...], Prediction] = {}
    for each in scored:
        choice = each.choice
        own = tuple((number, each.own[number].grid(0)) for number in sorted(each.own))
        ends = None if each.ends is None else each.ends.grid(0)
        key = choice.grid(0), int(choice.schedule[0]), int(choice.recompute[0]), own, ends
        found.setdefault(key, each)
    return list(found.values())


def _merged(scored: list[Prediction]) -> list[list[Prediction]]:
    """Neighbours that take the same time and memory, together: a rounding apart."""
    found: list[list[Prediction]] = []
    for each in scored:
        first = found[-1][0] if found else None
        if first is not None and all(
            math.isclose(a, b, rel_tol=1e-9)
            for a, b in ((each.seconds, first.seconds), (each.fullest, first.fullest))
        ):
            found[-1].append(each)
        else:
            found.append([each])
    return found


def _order(found: Estimate, fits: np.ndarray, objective: Objective) -> np.ndarray:
    worth: Floats = found.bytes if objective == "memory" else found.seconds
    fitting = np.flatnonzero(fits)
    return fitting[np.argsort(worth[fitting], kind="stable")]


def _finalists(
    question: Question,
    choices: Choices,
    found: Estimate,
    order: np.ndarray,
    objective: Objective,
    finalists: int,
) -> Iterator[int]:
    """The best by formula, and the best of each pair of stages and tensor degree that is not far behind."""
    if not len(order):
        return
    worth = found.bytes if objective == "memory" else found.seconds
    limit, spent, taken = MARGIN * worth[order[0]], 0, 0
    seen: dict[tuple[int, int], int] = {}
    for index in order:
        if worth[index] > limit or taken >= finalists:
            return
        key = int(choices.pp[index]), int(choices.tp[index])
        if seen.get(key, 0) >= 6:
            continue
        nodes = int(choices.pp[index] * choices.chunks[index]) * 2
        size = min(nodes * int(choices.microbatches(question.batch)[index]), 48_000) if nodes > 2 else 0
        if taken and spent + size > SIMULATED:
            return
        seen[key] = seen.get(key, 0) + 1
        spent, taken = spent + size, taken + 1
        yield int(index)


def lost_because(prediction: Prediction, best: Prediction, objective: Objective = "time") -> str:
    """What a layout loses to the best one, and which term does it."""
    if objective == "memory":
        more = prediction.fullest - best.fullest
        part = max(
            {name for parts in prediction.bytes for name in parts},
            key=lambda name: _most(prediction, name) - _most(best, name),
        )
        return f"{more / 1e9:.2f} GB more of a device, most of it {part}"
    behind = prediction.seconds - best.seconds
    terms = {
        "compute": prediction.compute - best.compute,
        "communication": prediction.communication - best.communication,
        "bubble": prediction.bubble - best.bubble,
    }
    worst = max(terms, key=terms.__getitem__)
    why = {
        "compute": f"the busiest rank computes {terms[worst]:.3g} s longer",
        "communication": f"{terms[worst]:.3g} s more of messages that nothing hides",
        "bubble": f"{terms[worst]:.3g} s more of waiting in the pipeline",
    }
    if behind <= 1e-9:
        return "as fast, and no less memory"
    return f"{100 * behind / best.seconds:.2g} % slower: {why[worst]}"


def _most(prediction: Prediction, part: str) -> float:
    return max(parts[part] for parts in prediction.bytes)
