"""Answers are graded while the policy learns, on a thread: each once, with the same rewards, and a failure of
it ends the run in its own words.

What this cannot show: that it is faster, which `python -m bench.asynchronous` measures.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.post import delayed, rewards, room
from shunter.post import reinforce as plain
from shunter.post.delayed import COLUMNS, ROW, TASKS
from shunter.post.meanwhile import NAME
from shunter.post.rewards import Graded, Grader, Item
from shunter.post.rows import whole_steps
from shunter.post.samplers import by_step
from shunter.post.store import SampleStore
from tests.jobs.conftest import Work
from tests.jobs.test_delayed_rl import ANY, EXACT, HOW, dribble, killed, rows_of, until
from tests.jobs.test_post_jobs import model, reinforce, talks, weights

__all__ = ["dribble", "model", "talks"]  # fixtures
MAIN = threading.main_thread()


def rewarded(lessons: delayed.Delayed, step: int) -> bool:
    mine = [cells for cells in lessons.store.rows() if cells["step"] == step]
    return bool(mine) and all("reward" in cells for cells in mine)


@pytest.mark.parametrize("how", [HOW, pytest.param(EXACT, marks=pytest.mark.long)], ids=["free", "exact"])
def test_the_next_step_is_graded_while_this_one_is_learnt_from(
    work: Work, model: Path, talks: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning waits for it: were answers graded by the one that learns, it would wait for ever. The curve is
    that of a run whose threads are left alone."""
    how = {**how, "early": False}  # its parts are as people are quick, and so is rounding
    more: dict[str, Any] = {"staleness": 1, "how": how, "train": {"steps": 3, "lr": 1e-3}}
    whole, _ = reinforce(work, model, talks, name="whole", **more)
    learn, late = plain.Reinforcement._learn, list[int]()

    def waits(self: Any, number: int, samples: Any) -> dict[str, float]:
        if number < 2:
            until(lambda: rewarded(self, number + 1))
            late.append(number)
        return learn(self, number, samples)

    monkeypatch.setattr(plain.Reinforcement, "_learn", waits)
    out, _ = reinforce(work, model, talks, **more)
    assert late == [0, 1]
    assert (out / "rewards.json").read_text() == (whole / "rewards.json").read_text()
    assert weights(out) == weights(whole)


def test_a_step_that_is_complete_is_learnt_from_before_the_reference_speaks_on_later_ones(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewards of a step come while the reference speaks on a group of the next one: no other follows."""
    later, amid = list[int](), set[int]()
    learn, reward, refer = delayed.Delayed._learn, delayed.Delayed._reward, delayed.Delayed._refer

    def noted(self: delayed.Delayed, number: int, samples: Any) -> dict[str, float]:
        later.append(sum("reference" in cells for cells in self.store.rows()))
        return learn(self, number, samples)

    def late(self: delayed.Delayed, taken: Any) -> None:
        (step,) = {row["step"] for row in taken.values()}
        until(lambda: step in amid or step == 2)
        reward(self, taken)

    def speaks(self: delayed.Delayed, done: Any) -> Any:
        if len(done) == 4:  # a group alone is one of a later step
            amid.add(self.now)
            until(lambda: rewarded(self, self.now))
        return refer(self, done)

    monkeypatch.setattr(delayed.Delayed, "_learn", noted)
    monkeypatch.setattr(delayed.Delayed, "_refer", speaks)
    monkeypatch.setattr(delayed.Delayed, "_reward", late)
    train = {"steps": 3, "lr": 1e-3}
    reinforce(work, model, talks, staleness=1, policy={"kl": 0.05}, how=HOW, train=train)
    assert later == [4, 4, 0]


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        ({"algorithm": "grpo", "kl": 0.05}, True),
        pytest.param({"algorithm": "rloo"}, True, marks=pytest.mark.long),
        pytest.param({"algorithm": "dapo"}, False, marks=pytest.mark.long),
        pytest.param({"algorithm": "grpo", "updates": 2}, False, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_the_gradient_of_a_step_begins_before_it_is_written(
    work: Work, model: Path, talks: Path, dribble: None, policy: dict[str, Any], parts: bool
) -> None:
    """Of its three groups two at most, as answers come five at a time; of none where a step's tokens count,
    or where it has several updates. Weights and rewards are those of steps that begin when all is there."""
    more: dict[str, Any] = {"staleness": 1, "policy": policy, "train": {"steps": 3, "lr": 1e-3}}
    how = {**HOW, "writer": "process"}
    early, _ = reinforce(work, model, talks, name="early", how=how, **more)
    late, _ = reinforce(work, model, talks, name="late", how={**how, "early": False}, **more)
    shares = [row.get("rl/early", 0.0) for row in rows_of(early)]
    assert (max(shares) > 0) == parts
    assert max(shares) < 0.7
    for name in ("rl/reward", "rl/length", "rl/off_policy", "rl/policy_loss"):
        mine, theirs = ([row[name] for row in rows_of(out)] for out in (early, late))
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    a, b = (load_file(out / "model.safetensors") for out in (early, late))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_steps_from_which_nothing_is_learnt_leave_no_gradient(
    work: Work, model: Path, talks: Path, dribble: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grade, steps = Grader.grade, 2

    def equal(self: Grader, items: Sequence[Item]) -> list[Graded]:
        return [replace(one, total=1.0) for one in grade(self, items)]

    how = {**HOW, "writer": "process"}
    more: dict[str, Any] = {"staleness": 1, "how": how, "train": {"steps": steps, "lr": 1e-3}}
    with monkeypatch.context() as patch:
        patch.setattr(Grader, "grade", equal)
        out, _ = reinforce(work, model, talks, **more)
    rows = rows_of(out)
    assert [row["rl/idle"] for row in rows] == [1.0] * steps
    assert max(row["rl/early"] for row in rows) > 0
    mine, first = (load_file(folder / "model.safetensors") for folder in (out, model))
    assert all(torch.equal(mine[name], first[name]) for name in first)


def test_each_failure_is_counted_once_over_kills_amid_grading(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, and saved, when answers of later steps were graded and not yet noted as such."""
    lines = [json.loads(line) for line in (talks / "train.jsonl").read_text().splitlines()]
    for line in lines[::3]:
        line["messages"][-1]["content"] = "none"
    (talks / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more: dict[str, Any] = {"staleness": 1, "how": HOW, "train": {"steps": 6, "lr": 1e-3}}
    more["rewards"] = [{"kind": "number"}, {"kind": "format", "pattern": ".*[a-m].*"}]
    grade, calls = Grader.grade, list[str]()

    def slow(self: Grader, items: Sequence[Item]) -> list[Graded]:
        calls.append(threading.current_thread().name)
        found = grade(self, items)
        time.sleep(0.03)  # within which steps are learnt from, and saved
        return found

    monkeypatch.setattr(Grader, "grade", slow)
    for at in (2, 4):
        with killed("train.step", at):
            reinforce(work, model, talks, **more)
    _, metrics = reinforce(work, model, talks, **more)
    assert metrics["not_graded"] == 6 * 12 / 3
    assert MAIN.name not in calls


def test_a_rule_that_computes_as_the_learner_does_is_not_beside_it(
    work: Work, model: Path, talks: Path, dribble: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grades the groups that are there while others are written, on the learner's thread; the curve is
    that of a thread beside it."""
    calls: list[tuple[str, int]] = []
    grade = Grader.grade

    def noted(self: Grader, items: Sequence[Item]) -> list[Graded]:
        calls.append((threading.current_thread().name, len(items)))
        return grade(self, items)

    more: dict[str, Any] = {"staleness": 1, "how": {**HOW, "writer": "process"}}
    more["train"] = {"steps": 3, "lr": 1e-3}
    beside, _ = reinforce(work, model, talks, name="beside", **more)
    monkeypatch.setattr(Grader, "grade", noted)
    monkeypatch.setattr(rewards.Matches, "computes", True, raising=False)
    out, _ = reinforce(work, model, talks, **more)
    assert {name for name, _ in calls} == {MAIN.name}
    assert min(count for _, count in calls) < 12, "a part of a step, before the others were there"
    mine, theirs = (json.loads((folder / "rewards.json").read_text()) for folder in (out, beside))
    assert mine == pytest.approx(theirs, abs=1e-6)


def test_a_grader_that_was_tampered_with_ends_the_run_in_its_own_words(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards.Matches, "grade", lambda self, items: [1.0] * len(items))
    with pytest.raises(ShunterError, match=r"the reward format gave 1\.0 to the answer"):
        reinforce(work, model, talks, staleness=1, how=HOW)
    assert not any(thread.name == NAME for thread in threading.enumerate())


def test_a_rule_that_grades_none_of_a_step_ends_the_run(work: Work, model: Path, talks: Path) -> None:
    lines = [json.loads(line) for line in (talks / "train.jsonl").read_text().splitlines()]
    for line in lines:
        line["messages"][-1]["content"] = "none"
    (talks / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ShunterError, match="the reward number could grade no answer of a step"):
        reinforce(work, model, talks, staleness=1, how=HOW, rewards=[{"kind": "number"}])


def test_memory_for_the_weights_of_so_many_steps_is_asked_for_first(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available", lambda: 1 << 16)
    with pytest.raises(ShunterError, match=r"weights of 3 moments \(.* take .* and 65\.5 kB are free"):
        reinforce(work, model, talks, staleness=1, how=HOW)


def test_memory_for_who_writes_and_weights_on_their_way_is_asked_for_too(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the weights are kept here, two sent, and each process that writes has them, once more in
    another order, and a cache."""
    size = sum(tensor.nbytes for tensor in load_file(model / "model.safetensors").values())
    more: dict[str, Any] = {"staleness": 1, "train": {"steps": 2, "lr": 1e-3}}
    least = {**ANY, "cache": 16}

    def free(sizes: float) -> None:
        monkeypatch.setattr(room, "available", lambda: int(sizes * size))

    free(3.1)
    reinforce(work, model, talks, "here", how=HOW, **more)
    for count in (1, 2):
        how = {**least, "writers": ["cpu"] * count}
        free(5 + 1.9 * count)
        with pytest.raises(ShunterError, match=r"way to the processes that write \(.*\), what these hold \("):
            reinforce(work, model, talks, f"{count}", how=how, **more)
        free(5.1 + 2.5 * count)
        reinforce(work, model, talks, f"{count}", how=how, **more)


def test_with_adapters_whole_models_are_on_their_way(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are sent, a third is computed with here, and who writes has a fourth and the cache; what is kept of
    each step is adapters alone, here a quarter of a model."""
    size = sum(tensor.nbytes for tensor in load_file(model / "model.safetensors").values())
    more = {"staleness": 1, "train": {"steps": 2, "lr": 1e-3}, "adapter": {"rank": 1}}
    for sizes, enough in ((3.9, False), (8.0, True)):
        monkeypatch.setattr(room, "available", lambda sizes=sizes: int(sizes * size))
        if enough:
            reinforce(work, model, talks, "enough", how={**ANY, "cache": 16}, **more)
            continue
        with pytest.raises(ShunterError, match=r"way to the processes that write \(.*\), what these hold \("):
            reinforce(work, model, talks, "less", how={**ANY, "cache": 16}, **more)


def test_a_step_that_was_graded_in_part_is_graded_whole_by_who_takes_whole_steps() -> None:
    """As where `deterministic` is given to a training that goes on: of step 0 a group is graded, of step 1
    all rows are, of step 2 a row is not written yet."""
    store = SampleStore(COLUMNS, TASKS, capacity=12)
    rows = [{"step": at // 4, "number": at % 4, "group": at // 2, "again": False} for at in range(11)]
    store.insert([{**row, "answer": None} for row in rows])
    lent = store.poll("reward", ROW, 8, lambda ready, count: [0, 1, 4, 5, 6, 7, 8, 9])
    store.done("reward", {row: {"reward": 1.0} for row in lent})
    for whole, left in ((False, {}), (True, {0, 1, 2, 3})):
        other = SampleStore(COLUMNS, TASKS, capacity=12)
        other.restore(whole_steps(store.state(), 4) if whole else store.state())
        assert set(other.poll("reward", ROW, 4, by_step(2, whole=True))) == set(left)
        other.close()
    state = whole_steps(store.state(), 4)
    assert state["done"]["reward"] == [4, 5, 6, 7]
    assert [row for row, cells in state["cells"] if "reward" in cells] == [4, 5, 6, 7]
