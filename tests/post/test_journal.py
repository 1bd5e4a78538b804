"""Answers on disk: finished ones, and parts of others, of weights that count."""

from __future__ import annotations

from pathlib import Path

from shunter.generate.rollout import Rollout
from shunter.post.journal import Journal


def one(*ids: int, versions: list[int] | None = None) -> Rollout:
    count = len(ids)
    return Rollout(
        ids=list(ids),
        logprobs=[-0.5] * count,
        prompt=[1],
        versions=versions or [3] * count,
        wrote=[True] * count,
    )


def test_weights_since_the_oldest_that_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    mixed = one(5, 6, versions=[2, 3])
    journal.write(0, {0: one(5), 1: mixed, 2: one(7, versions=[4]), 3: one(8, versions=[1])})
    assert journal.read(0, 3).keys() == {0}
    assert journal.read(0, 3, 2) == {0: one(5), 1: mixed}
    assert journal.read(0, 4, 1).keys() == {0, 1, 2, 3}
    assert journal.read(0, 4, 3).keys() == {0, 2}


def test_parts_grow_until_they_are_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.keep(0, {0: one(5), 1: one(6, versions=[2])})
    journal.keep(0, {0: one(5, 7, 8), 1: one(6, 9, versions=[2, 3])})
    journal.keep(0, {0: one(5, 7, 8)})
    assert journal.read(0, 3, 0) == {}, "none is finished"
    assert journal.begun(0, 3) == {0: one(5, 7, 8)}
    assert journal.begun(0, 3, 2) == {0: one(5, 7, 8), 1: one(6, 9, versions=[2, 3])}
    journal.write(0, {0: one(5, 7, 8, 4)})
    assert journal.read(0, 3) == {0: one(5, 7, 8, 4)}
    assert journal.begun(0, 3, 2).keys() == {1}
    lines = (tmp_path / "step-00000000.jsonl").read_text().splitlines()
    assert len(lines) == 5, "what is on disk is not written again"


def test_the_longest_part_counts_and_another_attempt_begins_with_all_it_has(tmp_path: Path) -> None:
    first = Journal(tmp_path, "w1")
    first.keep(4, {0: one(5, 6), 1: one(7)})
    first.keep(4, {0: one(5, 6, 7)})
    torn = tmp_path / "step-00000004-w1.jsonl"
    torn.write_bytes(torn.read_bytes()[:-9])
    assert first.begun(4, 3) == {0: one(5, 6), 1: one(7)}
    then = Journal(tmp_path, "w2")
    then.keep(4, {0: one(5, 6, 8, 9)})
    assert then.begun(4, 3) == {0: one(5, 6, 8, 9), 1: one(7)}
    then.keep(4, {0: one(5, 6, 8, 9, 2)})
    assert Journal(tmp_path).begun(4, 3) == {0: one(5, 6, 8, 9, 2), 1: one(7)}
