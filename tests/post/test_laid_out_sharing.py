"""`rl` under any layout: answers to one prompt share a row, to be learnt from and to be scored.

What this cannot show: see `test_laid_out_rl`, whose lessons these are.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shunter.parallel.mesh import Groups
from shunter.post.batch import Sample
from shunter.post.laid_out import LaidOutScorer
from shunter.post.laid_out_rl import LaidOutReinforcement
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool
from tests.post.test_laid_out_rl import (
    GROUP,
    STEPS,
    Lesson,
    Outcome,
    differs,
    learnt,
    made,
    small,
    task,
)
from tests.train import layouts
from tests.train.layouts import CPU


def test_copies_write_with_the_weights_that_learn_and_rows_share_their_prompts(pool: Pool) -> None:
    """Where a rank has the whole model, and rows are whole."""
    layouts_of_two = (
        ({"dp": 2}, True, True),
        ({"cp": 2}, False, False),
        ({"fsdp": 2}, False, True),
        ({"tp": 2}, False, True),
        ({"pp": 2}, False, True),
        ({"dp": 2, "zero": 1}, False, True),
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, (parallel, own, shared) in enumerate(layouts_of_two):
            lesson = Lesson(small(**parallel), answers=16, place=f"{folder}/{number}")
            assert pool.run(seen, 2, lesson, lesson.case.layout.grid) == [(own, shared)] * 2, parallel


def seen(rank: int, groups: Groups, lesson: Lesson) -> tuple[bool, bool]:
    """Whether what writes is what learns, and whether answers share their prompts' rows."""
    it = made(lesson, World.create(lesson.case.layout.grid, rank, CPU, GROUPS))
    assert isinstance(it, LaidOutReinforcement)
    whole = layouts.model(lesson.case).state_dict()
    with it.writes.there():
        for name, tensor in it.writes.model.state_dict().items():
            assert tensor.equal(whole[name]), name
    known = {name: [0.0] for name in ("old", "advantage", "reference")}
    samples = [Sample([i // 2 + 1, 3, 4], [False, False, True], known) for i in range(16)]
    batches = it._batches(samples)
    assert len(batches) == it.laid_out.parallel.parts
    # One prompt's answers would be one row: they are as many as there are micro-batches.
    alike = [Sample([1, 3, 4], [False, False, True], known)] * 16
    for few in (it._batches(alike), it._scored(alike)):
        assert {batch.shared for batch in few} == {batches[0].shared}
        assert sum(len(batch.tokens) for batch in few) < 16 or not batches[0].shared
    return it.writes.own, batches[0].shared


@pytest.mark.parametrize(
    ("parallel", "policy", "shared"),
    [
        ({"fsdp": 2}, "updates", True),
        ({"tp": 2}, "ppo", True),
        pytest.param({"dp": 2}, "ppo", True, marks=pytest.mark.long),
        pytest.param({"pp": 2}, "updates", True, marks=pytest.mark.long),
        ({"cp": 2}, "updates", False),
    ],
    ids=str,
)
def test_answers_share_prompts_where_they_are_scored_too(
    pool: Pool, tmp_path: Path, parallel: dict[str, int], policy: str, shared: bool
) -> None:
    """What the reference and the critic say, and the gap, which are held against one process here too."""
    lesson = Lesson(small(**parallel), policy, 8)
    alone = learnt(replace(lesson, place=str(tmp_path / "alone")), None)
    for found, batches in pool.run(
        scored, 2, replace(lesson, place=str(tmp_path / "ranks")), lesson.case.layout.grid
    ):
        assert not differs(found, alone)
        # Of each step: the reference, and either the gap or the critic.
        assert len(batches) >= 2 * STEPS
        assert {each for each, _ in batches} == {shared}
        answers = STEPS * lesson.per_step * GROUP * 2
        rows = sum(count for _, count in batches)
        assert rows <= answers // GROUP if shared else rows == answers


def scored(rank: int, groups: Groups, lesson: Lesson) -> tuple[Outcome, list[tuple[bool, int]]]:
    """With what was scored: whether answers share rows, and how many there are."""
    batches: list[tuple[bool, int]] = []
    call = LaidOutScorer.__call__

    def noted(self: LaidOutScorer, batch: Any, needs: frozenset[str]) -> Any:
        batches.append((batch.shared, len(batch.tokens)))
        return call(self, batch, needs)

    with mock.patch.object(LaidOutScorer, "__call__", noted):
        return task(rank, groups, lesson), batches
