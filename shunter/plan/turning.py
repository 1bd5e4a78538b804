"""Seconds in which hidden states change ranks between layers whose grids differ. Imports without torch.

What is handed over is counted piece by piece, as the run does it (`shunter.layout.seats`); where a stage has
many ranks all that a rank has is taken to move. Grids that differ in dp and fsdp alone have the same tokens
on the same ranks: such a change is free.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np

from shunter.layout.grid import Grid
from shunter.layout.seats import common, evenly, givers, seats
from shunter.plan.choices import Choices, Question
from shunter.plan.communication import exchange

COUNTED = 16  # ranks of a stage up to which pieces are counted


def turn(question: Question, before: Choices, after: Choices) -> float:
    """Of one micro-batch, in one direction. before, after: of length 1, over the same ranks."""
    one, other = before.grid(0), after.grid(0)
    if _tokens(one) == _tokens(other):
        return 0.0
    rows = int(before.rows[0]) * one.dp * one.fsdp
    tokens, span = handed(one, other, rows, question.row, question.practice.sequence)
    if span == 1:
        return 0.0
    size = question.practice.hidden * tokens * question.spec.dim * span / (span - 1)
    ones = np.ones(1, dtype=np.int64)
    return float(exchange(question, ones, span * ones, np.array([size]))[0])


def _tokens(grid: Grid) -> tuple[int, int, int]:
    """What decides which tokens a rank has."""
    return grid.dp * grid.fsdp, grid.cp, grid.tp


@lru_cache(maxsize=1 << 12)
def handed(before: Grid, after: Grid, rows: int, length: int, sequence: bool) -> tuple[int, int]:
    """The most tokens that a rank hands over, and among how many neighbouring ranks it does so. rows: of a
    micro-batch on all data ranks together."""
    ranks = before.size // before.pp
    if ranks > COUNTED:
        parts = min(before.cp * (before.tp if sequence else 1), after.cp * (after.tp if sequence else 1))
        near = before.cp == after.cp == 1
        span = before.tp * after.tp // gcd(before.tp, after.tp) if near else ranks
        return -(-rows * length // (parts * min(before.dp * before.fsdp, after.dp * after.fsdp))), span
    source, target = (seats(grid, evenly(rows, grid), length, sequence=sequence) for grid in (before, after))
    sent, far = [0] * ranks, 1
    for receiver, (wanted, chosen) in enumerate(zip(target, givers(source, target), strict=True)):
        for giver in chosen:
            if giver != receiver:
                sent[giver] += common(source[giver], wanted)
                far = max(far, _block(giver, receiver, ranks))
    return max(sent), far


def _block(one: int, other: int, ranks: int) -> int:
    """The smallest part of the ranks, in blocks of one size, that has both."""
    return next(size for size in range(1, ranks + 1) if ranks % size == 0 and one // size == other // size)
