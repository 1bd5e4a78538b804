"""The fastest layouts of a question: all by formulas, the best of them by the event simulator.

Imports without torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from shunter.config.errors import ShunterError
from shunter.plan.choices import Choices, Floats, Question
from shunter.plan.estimate import Estimate, estimate
from shunter.plan.score import Prediction, predict
from shunter.plan.space import Fixed, divisors, space

Objective = Literal["time", "cost", "memory"]

FINALISTS = 32
SIMULATED = 1_500_000  # nodes of all simulated programs together
MARGIN = 1.35  # estimates beyond this times the best one are not looked at more closely


@dataclass(frozen=True)
class Ranked:
    """A layout and why it is not the first: empty for the one that is."""

    prediction: Prediction
    lost_because: str = ""


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
) -> Found:
    """The `top` best layouts. room: bytes of each rank, by default all that the smallest device has.
    finalists: most layouts that are simulated. objective: `cost` looks at parts of the cluster too, so many
    whole nodes as divide it, and answers for the one whose step costs least; the others keep all devices.

    Raises ShunterError where what is fixed leaves no layout, and where none fits: with the smallest cluster
    of that kind in which one would, and the largest batch and row that fit in this one.
    """
    begin = time.perf_counter()
    fixed = dict(fixed or {})
    if objective == "cost":
        return _cheapest(question, fixed, room, top, finalists)
    room = question.fabric.memory if room is None else min(room, question.fabric.memory)
    # The leanest is asked for with all that makes it lean.
    given = None if objective == "memory" else room
    choices, found = _estimated(question, fixed, given)
    fits = found.bytes <= room
    if not fits.any():
        raise _fits_nowhere(question, fixed, room, float(found.bytes.min()))
    # Those that need not compute anything again are there without it, too.
    order = _order(found, fits if "recompute" in fixed else fits & ~found.spare, objective)
    scored, tried = [], set()
    for index in _finalists(question, choices, found, order, objective, finalists):
        tried.add(index)
        prediction = predict(question, choices.take([index]), given)
        if prediction.fullest <= room:
            scored.append(prediction)
    if not scored:  # whole layers need a little more room than parts of them: go on until one fits
        for index in order:
            if int(index) in tried:
                continue
            prediction = predict(question, choices.take([index]), given)
            if prediction.fullest <= room:
                scored.append(prediction)
                break
        else:
            raise _fits_nowhere(question, fixed, room, float(found.bytes.min()))
    scored.sort(key=lambda each: _worth(each, objective))
    best = scored[0]
    plans = [
        Ranked(each, "" if each is best else lost_because(each, best, objective))
        for each in _different(scored)[:top]
    ]
    spent = time.perf_counter() - begin
    rejected = int((~fits).sum())
    return Found(question, tuple(plans), len(choices), rejected, spent, room, objective, fixed)


def _cheapest(question: Question, fixed: Fixed, room: float | None, top: int, finalists: int) -> Found:
    """Of all parts of the cluster the one whose best step costs least, with its plans by time."""
    fabric = question.fabric
    if fabric.price_per_hour is None:
        raise ShunterError(
            f"the cluster {fabric.name} has no price",
            mend="Give its nodes a price_per_hour in the cluster's file, or ask for the least time.",
        )
    begin = time.perf_counter()
    nodes = fabric.world // fabric.block
    best: Found | None = None
    least, problem = float("inf"), None
    considered = rejected = 0
    for count in divisors(nodes):
        part = replace(
            fabric,
            world=count * fabric.block,
            kinds=fabric.kinds[:count],
            price_per_hour=fabric.price_per_hour * count / nodes,
        )
        try:
            found = search(
                replace(question, fabric=part), fixed=fixed, room=room, top=top, finalists=finalists
            )
        except ShunterError as error:
            problem = error
            continue
        considered, rejected = considered + found.considered, rejected + found.rejected
        cost = found.plans[0].prediction.seconds * count
        if cost < least:
            best, least = found, cost
    if best is None:
        assert problem is not None
        raise problem
    spent = time.perf_counter() - begin
    return replace(best, considered=considered, rejected=rejected, seconds=spent, objective="cost")


def _estimated(question: Question, fixed: Fixed, room: float | None) -> tuple[Choices, Estimate]:
    choices = space(question, fixed)
    if not len(choices):
        raise ShunterError(
            f"no layout of {question.fabric.world} devices has "
            + (", ".join(f"{key} {value}" for key, value in fixed.items()) or f"a batch of {question.batch}"),
            mend=_why_none(question, fixed),
        )
    return choices, estimate(question, choices, room)


def _why_none(question: Question, fixed: Fixed) -> str:
    """Which of the fixed choices has to go: the first without which there are layouts."""
    for name in fixed:
        if len(space(question, {key: value for key, value in fixed.items() if key != name})):
            degree = fixed[name]
            near = sorted({
                int(getattr(question_space, name)[i])
                for question_space in [space(question, {k: v for k, v in fixed.items() if k != name})]
                for i in range(len(question_space))
            }) if name in ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp", "chunks") else []  # fmt: skip
            known = f"; {name} may be {', '.join(map(str, near[:12]))}" if near else ""
            return f"Leave {name}={degree} out{known}."
    return "Use a batch that divides by the devices, or more layers and heads."


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
        key = choice.grid(0), int(choice.schedule[0]), int(choice.recompute[0])
        found.setdefault(key, each)
    return list(found.values())


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


def _fits_nowhere(question: Question, fixed: Fixed, room: float, least: float) -> ShunterError:
    hints = []
    if (nodes := smallest_cluster(question, fixed, room)) is not None:
        hints.append(f"{nodes} devices of this kind would do")
    for name, value in (
        ("batch", largest(question, fixed, room, "batch")),
        ("sequence", largest(question, fixed, room, "row")),
    ):
        if value:
            hints.append(f"here a {name} of {value} fits")
    text = "; ".join(hints) or "no larger cluster of this kind, and no smaller batch, would do"
    return ShunterError(
        f"the model fits nowhere: the smallest of all layouts needs {least / 1e9:.1f} GB of a device, "
        f"which has {room / 1e9:.1f} GB",
        mend=text[:1].upper() + text[1:] + ".",
    )


def smallest_cluster(question: Question, fixed: Fixed, room: float) -> int | None:
    """Devices of the smallest cluster of that kind in which a layout fits: 2, 4, ... times this one, then
    by whole nodes in between. None where 256 times as many would not do."""
    fabric, block = question.fabric, question.fabric.block
    free = {name: value for name, value in fixed.items() if name not in ("dp", "fsdp")}

    def fit(world: int) -> bool:
        wider = _wider(question, world)
        return _fit(wider, free, room)

    world = fabric.world * 2
    while world <= fabric.world * 256:
        if fit(world):
            break
        world *= 2
    else:
        return None
    low, high = world // 2, world
    while high - low > block:
        middle = (low + high) // 2 // block * block
        if middle in (low, high):
            break
        low, high = (low, middle) if fit(middle) else (middle, high)
    return high


def _wider(question: Question, world: int) -> Question:
    """The question for more devices of the same kind. A batch that no longer divides is made to."""
    fabric = question.fabric
    levels = list(fabric.levels)
    if not levels or world > levels[-1].extent:
        last = levels[-1] if levels else None
        if len(levels) > 1 or (last is not None and last.extent > fabric.block):
            assert last is not None
            levels[-1] = replace(last, extent=world)
        elif last is not None:  # one node until now: as its links, a tenth as fast
            levels.append(replace(last, extent=world, bandwidth=last.bandwidth / 10))
    kinds = tuple(fabric.kinds[number % len(fabric.kinds)] for number in range(-(-world // fabric.block)))
    wider = replace(fabric, world=world, levels=tuple(levels), kinds=kinds)
    batch = -(-question.batch // world) * world if question.batch % world else question.batch
    return replace(question, fabric=wider, batch=max(question.batch, batch))


def _fit(question: Question, fixed: Fixed, room: float) -> bool:
    choices = space(question, fixed)
    return bool(len(choices)) and bool((estimate(question, choices).bytes <= room).any())


def largest(question: Question, fixed: Fixed, room: float, what: Literal["batch", "row"]) -> int | None:
    """The largest smaller batch (rows), or sequence (tokens), that fits; None where not one row does."""
    value = getattr(question, what)
    for size in reversed(divisors(value)[:-1]):
        if what == "row" and size < 16:
            return None
        smaller = replace(question, batch=size) if what == "batch" else replace(question, row=size)
        if _fit(smaller, fixed, room):
            return size
    return None
