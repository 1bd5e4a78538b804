"""The store of samples and the tasks around it: each row once to each task, in groups, within bounds."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.post.store import Closed, SampleStore, balanced, by_group
from shunter.post.stream import Mode, Task, Versions, run

COLUMNS = ("prompt", "answer", "reward")


def store(capacity: int = 100) -> SampleStore:
    return SampleStore(COLUMNS, ["reward", "update"], capacity=capacity)


def test_many_readers_get_each_row_once_for_each_task() -> None:
    made = store(1000)
    got: dict[str, Counter[int]] = {"reward": Counter(), "update": Counter()}
    lock = threading.Lock()

    def read(task: str) -> None:
        while True:
            try:
                taken = made.take(task, ["prompt"], 3, timeout=30)
            except Closed:
                return
            with lock:
                got[task].update(list(taken))

    readers = [threading.Thread(target=read, args=(task,)) for task in got for _ in range(6)]
    for reader in readers:
        reader.start()
    for begin in range(0, 300, 10):
        made.insert([{"prompt": n} for n in range(begin, begin + 10)])
    while sum(map(Counter.total, got.values())) < 600:
        time.sleep(0.005)
    made.close()
    for reader in readers:
        reader.join()
    for counts in got.values():
        assert counts == Counter(range(300))


def test_a_row_is_ready_when_all_its_columns_are_written() -> None:
    made = store()
    a, b = made.insert([{"prompt": 1}, {"prompt": 2}])
    made.write(b, answer="x", reward=1.0)
    made.write(a, answer="y")
    assert list(made.take("update", ["answer", "reward"], 1)) == [b]
    with pytest.raises(ShunterError, match="could not give update 1 rows within"):
        made.take("update", ["answer", "reward"], 1, timeout=0.05)
    with pytest.raises(ValueError, match="answer of row 0 is written already"):
        made.write(a, answer="z")
    with pytest.raises(ShunterError, match="no column 'rewards'"):
        made.write(a, rewards=1.0)
    with pytest.raises(ShunterError, match="no column 'rewards'"):
        made.take("update", ["rewards"], 1)


def test_groups_are_never_split() -> None:
    """Rows come as they were finished, those of groups among each other, after one that is of none."""
    made = store()
    made.insert([{"prompt": -1}])
    order = [0, 2, 1, 0, 0, 2, 1, 2, 0, 1, 2]  # the group of each row; 1 lacks a row
    for group in order:
        made.insert([{"prompt": group, "answer": "a"}])
    groups = by_group(4, made.cell("prompt"))
    taken = made.take("update", ["prompt", "answer"], 8, groups)
    assert [cells["prompt"] for cells in taken.values()] == [0] * 4 + [2] * 4
    with pytest.raises(ShunterError, match="could not give update 4 rows"):
        made.take("update", ["answer"], 4, groups, timeout=0.02)
    made.insert([{"prompt": 1, "answer": "a"}])
    assert {cells["prompt"] for cells in made.take("update", ["prompt", "answer"], 4, groups).values()} == {1}
    with pytest.raises(ValueError, match="no whole groups of 4"):
        made.take("update", ["answer"], 6, groups)
    made.insert([{"prompt": 7, "answer": "a"}] * 5)
    with pytest.raises(ValueError, match="the group 7 has 5 rows"):
        made.take("update", ["answer"], 4, groups)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_lengths_are_balanced(lengths: list[float], parts: int) -> None:
    found = balanced(dict(enumerate(lengths)), parts)
    assert sorted(row for part in found for row in part) == list(range(len(lengths)))
    assert max(map(len, found)) <= -(-len(lengths) // parts)
    totals = [sum(lengths[row] for row in part) for part in found]
    if len(lengths) % parts == 0:
        assert max(totals) - min(totals) <= max(lengths) * len(found[0])


def test_a_full_store_holds_its_producer_and_clearing_makes_room() -> None:
    made = store(capacity=4)
    rows = made.insert([{"prompt": n} for n in range(4)])
    with pytest.raises(ShunterError, match="could not insert rows"):
        made.insert([{"prompt": 5}], timeout=0.05)
    made.clear(rows[:2])
    assert made.insert([{"prompt": 5}]) == [4], "numbers are not reused"
    assert (made.live, made.most_live) == (3, 4)
    with pytest.raises(ShunterError, match="do not fit a store of 4"):
        made.insert([{"prompt": n} for n in range(5)])


def test_its_state_survives_and_what_was_on_loan_comes_back() -> None:
    made = store()
    made.insert([{"prompt": n} for n in range(5)])
    made.take("reward", ["prompt"], 4)
    made.write(1, "reward", answer="a", reward=1.0)
    made.finish("reward", [2])
    made.write(3, answer="b")  # by somebody else: the task is not done with it
    again = store()
    again.restore(json.loads(json.dumps(made.state())))
    assert list(again.take("reward", ["prompt"], 3)) == [0, 3, 4], "taken and not finished, or never taken"
    assert again.take("update", ["answer", "reward"], 1) == {1: {"answer": "a", "reward": 1.0}}
    assert again.insert([{"prompt": 9}]) == [5]


@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_each_row_is_done_once_by_each_task(seed: int) -> None:
    """A worker that takes, works and writes, killed after any of these; the state is that of some moment."""
    draw = np.random.default_rng(seed)
    made = store()
    made.insert([{"prompt": n} for n in range(12)])
    kept, done = made.state(), list[int]()
    before = list(done)
    while True:
        what = draw.integers(0, 5)
        if what == 0:  # a crash: what was done since the last state is done anew, and only that
            made, done = store(), list(before)
            made.restore(kept)
        elif what == 1:
            kept, before = json.loads(json.dumps(made.state())), list(done)
        else:
            try:
                taken = made.take("reward", ["prompt"], 1, timeout=0.0)
            except ShunterError:
                if sorted(done) == list(range(12)):
                    break
                made, done = store(), list(before)  # some are on loan to workers that are gone
                made.restore(kept)
                continue
            (row,) = taken
            if what == 2:
                continue  # killed before it has written
            made.write(row, "reward", reward=1.0)
            done.append(row)
    assert len(done) == 12


class Work:
    """Tasks that sleep, and note what they saw."""

    def __init__(self) -> None:
        self.learnt: list[tuple[int, int, int]] = []
        self.inside = threading.Lock()
        self.sent: list[int] = []

    def rollout(self, step: int, number: int, version: int) -> dict[str, Any]:
        time.sleep(0.001 + 0.001 * (number % 3))
        return {"answer": f"{step}.{number}"}

    def reward(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        time.sleep(0.001 * len(rows))
        return [{"reward": len(row["answer"])} for row in rows]

    def update(self, step: int, rows: Sequence[Any]) -> None:
        time.sleep(0.001 * len(rows))
        self.learnt += [(row["step"], row["number"], row["version"]) for row in rows]

    def go(self, mode: Mode, steps: int = 4, rows: int = 6, **more: Any) -> Any:
        return run(
            mode, steps, rows, self.rollout, [Task("reward", ["answer"], ["reward"], self.reward, 2)],
            self.update, workers=2, update_reads=["number", "version", "answer", "reward"], update_batch=3,
            send=self.sent.append, timeout=20.0, **more,
        )  # fmt: skip


@pytest.mark.parametrize(("mode", "most"), [("sequential", 0), ("queue", 0), ("delayed", 1)])
def test_every_row_is_learnt_from_once_and_no_row_is_too_old(mode: Mode, most: int) -> None:
    work = Work()
    told = work.go(mode)
    assert Counter((step, number) for step, number, _ in work.learnt) == Counter(
        (step, number) for step in range(4) for number in range(6)
    )
    assert [step for step, _, _ in work.learnt] == sorted(step for step, _, _ in work.learnt)
    assert max(step - version for step, _, version in work.learnt) == max(told.staleness) == most
    assert work.sent == [1, 2, 3, 4]
    assert told.most_live <= 18


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 3))
def test_the_bound_on_staleness_is_kept(bound: int) -> None:
    told = Work().go("delayed", staleness=bound)
    assert max(told.staleness) <= bound


def test_downstream_begins_before_upstream_has_finished_its_batch() -> None:
    told = Work().go("queue", steps=1, rows=12)
    order = sorted(told.order)
    first = next(at for at, task, event, _ in order if (task, event) == ("reward", "batch begins"))
    last = max(at for at, task, event, _ in order if (task, event) == ("rollout", "row ends"))
    assert first < last
    turns = sorted(Work().go("sequential", steps=1, rows=12).order)
    first = next(at for at, task, event, _ in turns if (task, event) == ("reward", "batch begins"))
    last = max(at for at, task, event, _ in turns if (task, event) == ("rollout", "row ends"))
    assert first > last


def test_a_row_has_one_version_of_the_weights() -> None:
    """Weights are taken between two rows: the version is chosen before a row is begun and never inside."""
    versions = Versions(1)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(versions.wait(2, 5.0)))
    thread.start()
    time.sleep(0.02)
    assert seen == [], "version 0 may not write step 2"
    versions.publish(1)
    thread.join()
    assert seen == [1]
    with pytest.raises(ShunterError, match="no weights came"):
        versions.wait(9, 0.02)


@pytest.mark.parametrize("who", ["rollout", "reward", "update"])
@pytest.mark.parametrize("mode", ["sequential", "delayed"])
def test_a_task_that_dies_ends_all(who: str, mode: Mode) -> None:
    work = Work()

    def die(*given: Any) -> Any:
        raise RuntimeError("dead")

    setattr(work, who, die)
    begin = time.monotonic()
    with pytest.raises(ShunterError, match="dead"):
        work.go(mode)
    assert time.monotonic() - begin < 10


def test_a_task_that_is_stuck_is_told_and_nothing_hangs() -> None:
    work = Work()
    work.reward = lambda rows: [{} for _ in rows]  # type: ignore[method-assign]
    with pytest.raises(ShunterError, match="could not give update 3 rows"):
        run("queue", 1, 3, work.rollout, [Task("reward", ["answer"], ["reward"], work.reward)],
            work.update, update_reads=["reward"], update_batch=3, timeout=0.3)  # fmt: skip


@pytest.mark.parametrize("mode", ["sequential", "queue"])
@pytest.mark.parametrize("stuck", ["rollout", "update"])
def test_a_task_that_never_ends_does_not_hold_the_others(mode: Mode, stuck: str) -> None:
    never = threading.Event()

    def rollout(step: int, number: int, version: int) -> dict[str, int]:
        if stuck == "rollout":
            never.wait(20)
        return {}

    def update(step: int, rows: object) -> None:
        if stuck == "update":
            never.wait(20)

    begin = time.perf_counter()
    with pytest.raises(ShunterError):
        run(mode, 1, 2, rollout, [], update, timeout=0.3)
    never.set()
    assert time.perf_counter() - begin < 10
