"""Embedding and head with degrees of their own where memory is short: the leanest layouts, and those of a
model that fits in no other way.

Where weights are sharded those of the ends are whole for a while, and so are their gradients: of a large
vocabulary that may be most of a small device. Cut by words they are not. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shunter.plan import memory
from shunter.plan.apart import Programme
from shunter.plan.choices import Choices, Floats, Ints, Question
from shunter.plan.estimate import Estimate
from shunter.plan.frame import ENDS, LEANER, Frame, frames
from shunter.plan.score import Prediction, predict
from shunter.plan.space import Fixed, divisors

LOOKS = 6  # frames that lend stages, schedule and micro-batches, of the quickest and of the leanest


def leanest(
    question: Question,
    choices: Choices,
    found: Estimate,
    scored: Sequence[Prediction],
    room: float,
    fixed: Fixed,
) -> list[Prediction]:
    """Of the leanest layouts, as they are (`scored`) and by estimate with other ends, each with those ends
    with which it is leaner by LEANER, if any."""
    bases = frames(scored, LOOKS)
    if question.fabric.terrain is None:
        least = found.bytes - _spared(question, choices)
        some = _first_of_frames(question, choices, least, np.arange(len(choices)))
        bases += [predict(question, choices.take([index])) for index in some]
    leaner = []
    for base in bases:
        frame = Frame(question, base, fixed, room)
        many = [replace(ends, recompute=base.choice.recompute) for ends in frame.leanest_ends(ENDS)]
        each = (frame.whole(base.choice, base.strategies, {}, ends, room) for ends in many)
        fit = [it for it in each if it is not None and it.fits(room)]
        best = min(fit, key=lambda it: (it.fullest, it.seconds), default=base)
        if best.fullest < (1 - LEANER) * base.fullest:
            leaner.append(best)
    return leaner


def rescued(
    question: Question, choices: Choices, found: Estimate, room: float, fixed: Fixed
) -> list[Prediction]:
    """Layouts that fit with other ends, of some that do not fit without (all of `choices`): the quickest of
    those in which enough may be spared, or else the leanest.

    found: their estimate. Nothing where devices differ: there a layout that does not fit has no place.
    """
    if question.fabric.terrain is not None:
        return []
    least = found.bytes - _spared(question, choices)
    may = np.flatnonzero(least <= room)
    for worth in (found.seconds, least):
        scored: list[Prediction] = []
        for index in _first_of_frames(question, choices, worth, may):
            programme = Programme(question, predict(question, choices.take([index])), fixed, room)
            many = [*programme.ends_worth_a_look(room), *programme.leanest_ends(1)]
            solved = (programme.solve(room, ends) for ends in (None, *many))
            scored += [it for it in solved if it is not None]
        if scored:
            return scored
    return []


def _first_of_frames(question: Question, choices: Choices, worth: Floats, among: Ints) -> list[int]:
    """Of each frame the layout worth most, least first; no more than LOOKS of them."""
    parts = choices.pp, choices.schedule, choices.chunks, choices.microbatches(question.batch)
    found: dict[tuple[int, ...], int] = {}
    for index in among[np.argsort(worth[among], kind="stable")]:
        found.setdefault(tuple(int(part[index]) for part in parts), int(index))
        if len(found) == LOOKS:
            break
    return list(found.values())


def _spared(question: Question, choices: Choices) -> Floats:
    """Bytes that embedding and head hold more of each layout's rank than where they are cut over all ranks of
    their stage, by words as far as may be: the most that other ends may spare, or about that."""
    ranks, block = choices.stage_ranks, question.fabric.block
    most = {each: max(n for n in divisors(each) if n <= block) for each in np.unique(ranks).tolist()}
    one, full, none = np.ones_like(ranks), np.ones(len(choices)), np.zeros(len(choices))
    tp = np.array([most[each] for each in ranks.tolist()])
    cut = replace(choices, dp=one, cp=one, ep=one, etp=one, tp=tp, fsdp=ranks // tp)
    cut = replace(cut, rows=np.maximum(choices.rows * choices.data // cut.fsdp, 1))
    ends = np.where((choices.pp == 1) & (not question.spec.tied), 2.0, 1.0)
    stage = memory.Stage(none, none, ends, full, full, none, none)
    now, least = (
        memory.total(memory.stage_bytes(question, each, stage, end=False)) for each in (choices, cut)
    )
    return np.maximum(now - least, 0.0)
