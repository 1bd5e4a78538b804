"""The store of samples and the tasks around it: each row once to each task, in groups, within bounds."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.post.samplers import Sampler, balanced, by_group, by_length, by_step
from shunter.post.store import Closed, SampleStore
from shunter.post.stream import Mode, Task, Versions, run

COLUMNS = ("prompt", "answer", "reward", "group", "length")


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
                if got[task].total() > 300:  # a store that gives rows twice would never end
                    return

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


def test_groups_are_never_split_and_never_of_strangers() -> None:
    """Rows of four prompts come in the order in which they are finished, one by one."""
    made = store()
    order = [2, 0, 1, 0, 2, 2, 3, 1, 0, 2, 1, 3, 0, 3, 1]
    for group in order[:9]:
        made.insert([{"prompt": group, "answer": "a", "group": group}])
    with pytest.raises(ShunterError, match="could not give"):
        made.take("update", ["prompt", "answer"], 4, by_group(4), timeout=0.02)
    for group in order[9:]:
        made.insert([{"prompt": group, "answer": "a", "group": group}])
    taken = made.take("update", ["prompt", "answer"], 12, by_group(4))
    assert Counter(cells["prompt"] for cells in taken.values()) == {0: 4, 1: 4, 2: 4}
    assert [cells["prompt"] for cells in taken.values()] == sorted(
        (cells["prompt"] for cells in taken.values()), key=[2, 0, 1].index
    ), "whole groups, oldest first"
    with pytest.raises(ValueError, match="no whole groups of 4"):
        made.take("update", ["answer"], 6, by_group(4))
    with pytest.raises(ValueError, match="5 rows have one value in group"):
        by_group(4)({n: {"group": 1} for n in range(5)}, 4)


def test_a_steps_rows_are_taken_by_their_numbers_and_its_groups_whole() -> None:
    made = SampleStore(("step", "group", "number"), ["update"], capacity=20)
    names = ("step", "group", "number")

    def put(*rows: tuple[int, int]) -> None:
        made.insert([{"step": step, "group": step * 10 + n // 2, "number": n} for step, n in rows])

    def had(sampler: Sampler) -> list[tuple[int, int]]:
        taken = made.poll("update", names, 4, sampler)
        return [(row["step"], row["number"]) for row in taken.values()]

    put((1, 1), (0, 2), (1, 0), (0, 1))
    assert had(by_step(2, whole=True)) == []
    assert had(by_step(2, lambda step: step == 0)) == [], "both groups of step 0 are halves"
    assert had(by_step(2)) == [(1, 0), (1, 1)]
    put((0, 3), (1, 3), (0, 0), (1, 2))
    assert had(by_step(2, lambda step: step == 1, whole=True)) == [], "a part of it was had"
    assert had(by_step(2, whole=True)) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert had(by_step(2)) == [(1, 2), (1, 3)]
    assert had(by_step(2)) == []


def test_rows_of_like_length_for_each_rank_and_no_group_on_two() -> None:
    lengths = [[9, 9], [1, 1], [5, 3], [2, 2], [4, 4], [1, 2], [8, 8], [3, 3]]
    ready = {2 * g + i: {"group": g, "length": lengths[g][i]} for g in range(8) for i in range(2)}
    taken = list(by_length(2, size=2)(ready, 16))
    parts = [taken[:8], taken[8:]]
    assert sorted(taken) == list(range(16))
    sums = [sum(ready[row]["length"] for row in part) for part in parts]
    assert abs(sums[0] - sums[1]) <= 2
    assert {row // 2 for row in parts[0]} & {row // 2 for row in parts[1]} == set()
    assert by_length(2, size=2)({row: ready[row] for row in range(6)}, 8) == []
    with pytest.raises(ValueError, match="for each of 2 ranks"):
        by_length(2, size=2)(ready, 6)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_lengths_are_balanced(lengths: list[float], parts: int) -> None:
    found = balanced(dict(enumerate(lengths)), parts)
    assert sorted(row for part in found for row in part) == list(range(len(lengths)))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    totals = [sum(lengths[row] for row in part) for part in found]
    if len(lengths) % parts == 0:
        assert max(totals) - min(totals) <= max(lengths)


@pytest.mark.parametrize(("heavy", "share"), [(False, 0.05), (True, 0.2)])
def test_balancing_is_far_better_than_dealing_out(heavy: bool, share: float) -> None:
    draw = random.Random(0)
    ours = dealt = 0.0
    for _ in range(30):
        lengths = {n: draw.lognormvariate(0, 1) if heavy else draw.random() for n in range(32)}
        order = sorted(lengths, key=lambda n: -lengths[n])
        spreads = [
            max(totals) - min(totals)
            for found in (balanced(lengths, 4), [order[i::4] for i in range(4)])
            for totals in [[sum(lengths[n] for n in part) for part in found]]
        ]
        ours, dealt = ours + spreads[0], dealt + spreads[1]
    assert ours < share * dealt


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


def test_what_was_lent_and_not_done_is_given_again_after_a_crash() -> None:
    made = store()
    made.insert([{"prompt": n} for n in range(4)])
    made.write(1, answer="a")
    assert list(made.take("reward", ["prompt"], 3)) == [0, 1, 2]
    made.done("reward", {0: {"reward": 1.0}, 1: {}})
    again = store()
    again.restore(json.loads(json.dumps(made.state())))
    assert list(again.take("reward", ["prompt"], 2, timeout=5.0)) == [2, 3], "2 was at work when it crashed"
    assert again.take("update", ["reward"], 1, timeout=5.0) == {0: {"reward": 1.0}}
    assert again.take("update", ["answer"], 1) == {1: {"answer": "a"}}
    assert again.insert([{"prompt": 9}]) == [4]
    with pytest.raises(ValueError, match="row 4 was not lent to reward"):
        again.done("reward", [4])


@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_each_row_is_done_once_by_each_task(seed: int) -> None:
    """A worker that takes, works and writes, killed after any of these; the state is that of some moment."""
    draw = random.Random(seed)
    made = store()
    made.insert([{"prompt": n} for n in range(12)])
    kept, done = made.state(), list[int]()
    before = list(done)
    while True:
        what = draw.randrange(5)
        if what == 0:  # a crash: what was done since the last state is done anew, and only that
            made, done = store(), list(before)
            made.restore(kept)
        elif what == 1:
            kept, before = json.loads(json.dumps(made.state())), list(done)
        else:
            try:
                (row,) = made.take("reward", ["prompt"], 1, timeout=0.0)
            except ShunterError:
                if sorted(done) == list(range(12)):
                    break
                made, done = store(), list(before)  # some are lent to workers that are gone
                made.restore(kept)
                continue
            if what == 2:
                continue  # killed before it has written
            made.done("reward", {row: {"reward": 1.0}})
            done.append(row)
    assert len(done) == 12


def test_what_is_given_back_is_given_again_and_what_is_lent_is_lent_once() -> None:
    made = store()
    made.insert([{"prompt": n} for n in range(3)])
    assert list(made.take("reward", ["prompt"], 2)) == [0, 1]
    with pytest.raises(ShunterError, match="could not give reward 2 rows"):
        made.take("reward", ["prompt"], 2, timeout=0.02)
    made.give_back("reward", [0])
    assert list(made.take("reward", ["prompt"], 2)) == [0, 2]
    made.done("reward", {2: {"reward": 1.0}})
    made.write(1, reward=0.0)
    with pytest.raises(ValueError, match="reward of row 1 is written already"):
        made.done("reward", {0: {"reward": 1.0}, 1: {"reward": 1.0}})
    assert made.had("reward") == {2}, "all or nothing"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=30))
def test_what_is_ready_is_what_is_written_and_not_had(moves: list[tuple[int, int]]) -> None:
    """The store keeps lists of what is ready; they say what looking at every row would."""
    made, had = store(), {"reward": set[int](), "update": set[int]()}
    asks = [("reward", ("prompt",)), ("update", ("answer", "reward")), ("update", ("prompt",))]
    for kind, count in moves:
        live = sorted(made._cells)
        if kind == 0:
            made.insert([{"prompt": 1}] * count)
        elif kind == 1 and live and "answer" not in made._cells[live[0]]:
            made.write(live[0], answer=1, reward=1)
        elif kind == 2 and live:
            made.clear(live[:1])
        elif kind > 2:
            task, columns = asks[kind - 3]
            ready = [n for n in live if n not in had[task] and set(columns) <= made._cells[n].keys()]
            if len(ready) >= count:
                assert list(made.take(task, columns, count)) == ready[:count]
                had[task].update(ready[:count])
            else:
                with pytest.raises(ShunterError, match="could not give"):
                    made.take(task, columns, count, timeout=0.0)


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
