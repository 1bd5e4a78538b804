"""`rl` where most answers are worth the same: what moves the weights, and what people are told.

What this cannot show: how well a policy learns from rare rewards; docs/papers/agnostics.md measures that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shunter.post import gathering
from shunter.post.batch import Sample, Sequences
from shunter.post.course import Pupil
from shunter.post.gathering import Flat, Gathering
from shunter.post.reinforce import Reinforcement
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.draws import some
from tests.jobs.conftest import Still, Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks, weights

__all__ = ["model", "talks"]  # fixtures
RARE = {"rewards": [{"kind": "format", "pattern": ".*[ac].*"}]}


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each update: the answers that it learns from, and whether any is worth more than others."""
    found: list[tuple[int, bool]] = []
    learn = Pupil.learn

    def noted(pupil: Pupil, objective: Any, batches: Any, *more: Any) -> Any:
        differ = any(np.any(batch.known["advantage"]) for batch in batches)
        found.append((sum(Sequences(batch).count for batch in batches), differ))
        return learn(pupil, objective, batches, *more)

    monkeypatch.setattr(Pupil, "learn", noted)
    return found


def rows_of(out: Path) -> list[dict[str, Any]]:
    return events.read_metrics(out.parent / "log" / "events.jsonl")


def test_a_part_of_equal_rewards_leaves_the_policy_as_it_is(
    work: Work, model: Path, talks: Path, learnt: list[tuple[int, bool]]
) -> None:
    """In a step from whose other parts there is something to learn: an update whose gradient is zero would
    move the weights by the optimizer's momentum."""
    train = {"steps": 3, "lr": 1e-3}
    out, _ = reinforce(work, model, talks, **RARE, policy={"updates": 12}, train=train)
    assert all(differ for _, differ in learnt)
    assert 0 < len(learnt) < 36
    rows = rows_of(out)
    assert [row["rl/idle"] for row in rows] == [float(row["rl/flat_groups"] == 1) for row in rows]
    assert all("train/grad_norm" in row for row in rows if not row["rl/idle"])


@some("algorithm", ["grpo", "dapo", "dr_grpo", "rloo", "gspo"])
@pytest.mark.parametrize(
    "more",
    [{}, {"staleness": 1}, {"how": {"writer": "process", "at_once": 4}}],
    ids=["turns", "stale", "early"],
)
def test_answers_without_an_advantage_are_not_computed(
    work: Work,
    model: Path,
    talks: Path,
    learnt: list[tuple[int, bool]],
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    more: dict[str, Any],
) -> None:
    """The weights are those of a learning that computes all of them."""
    how = more.get("how", {"deterministic": True})
    asked = {**RARE, "policy": {"algorithm": algorithm}, "train": {"steps": 4, "lr": 1e-3}, **more}
    asked["how"] = {**HOW, **how, "log_every": 1}
    out, _ = reinforce(work, model, talks, name="less", **asked)
    fewer = sum(count for count, _ in learnt)
    learnt.clear()
    monkeypatch.setattr(Reinforcement, "leaves_out", False)
    whole, _ = reinforce(work, model, talks, name="whole", **asked)
    rows, all_rows = rows_of(out), rows_of(whole)
    assert any(0 < row["rl/flat_groups"] < 1 for row in rows)
    assert fewer < sum(count for count, _ in learnt)
    for name in ("train/grad_norm", "rl/policy_loss", "rl/clipped"):
        mine = [row[name] for row in rows if name in row]
        assert mine == pytest.approx([row[name] for row in all_rows if name in row], rel=1e-4, abs=1e-7)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", [{"kl": 0.1}, {"entropy": 0.01}, {"algorithm": "ppo"}])
def test_all_are_computed_where_each_counts(
    work: Work, model: Path, talks: Path, learnt: list[tuple[int, bool]], policy: dict[str, Any]
) -> None:
    out, _ = reinforce(work, model, talks, **RARE, policy=policy, train={"steps": 2, "lr": 1e-3})
    assert any(row["rl/flat_groups"] for row in rows_of(out))
    assert {count for count, _ in learnt} == {12}


def test_updates_wait_for_groups_that_differ_and_learn_from_each_once(
    work: Work, model: Path, talks: Path, learnt: list[tuple[int, bool]]
) -> None:
    """All by the weights that wrote them, which the bound on the gap would see."""
    train = {"steps": 9, "lr": 1e-3}
    out, metrics = reinforce(work, model, talks, **RARE, policy={"least_groups": 4}, train=train)
    rows = rows_of(out)
    differing = [round(3 * (1 - row["rl/flat_groups"])) for row in rows]
    assert sum(differing) * 4 == sum(count for count, _ in learnt)
    assert all(count >= 16 for count, _ in learnt[:-1])
    waiting, expected = 0, []
    for number, count in enumerate(differing, 1):
        waiting += count
        done = waiting >= 4 or (number == 9 and waiting)
        expected.append((float(not done), 0.0 if done else float(waiting)))
        waiting = 0 if done else waiting
    assert [(row["rl/idle"], row["rl/gathered"]) for row in rows] == expected
    assert {idle for idle, _ in expected} == {0.0, 1.0}
    assert metrics["largest_gap"] < 1e-5


def test_groups_that_wait_outlast_a_stop(work: Work, model: Path, talks: Path) -> None:
    more = {**RARE, "policy": {"least_groups": 5}, "train": {"steps": 6, "lr": 1e-3}}
    more["how"] = {**HOW, "deterministic": True, "log_every": 2}  # the reference is asked now and then
    whole, _ = reinforce(work, model, talks, name="whole", **more)
    for stop in (1, 2):
        with pytest.raises(Stopped):
            reinforce(work, model, talks, name="cut", control=Still(stop_after=stop), **more)
    cut, _ = reinforce(work, model, talks, name="cut", **more)
    assert weights(cut) == weights(whole) != weights(model)
    assert any(row["rl/gathered"] for row in rows_of(whole)[:2])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"policy": {"least_groups": 2, "algorithm": "ppo"}}, "leave least_groups out"),
        ({"policy": {"least_groups": 2}, "staleness": 1}, "neither staleness nor how.placement"),
    ],
)
def test_where_groups_cannot_wait(
    work: Work, model: Path, talks: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        reinforce(work, model, talks, **more)


def test_what_waits_is_kept_with_its_bits() -> None:
    made = Gathering()
    numbers = {"old": np.asarray([-1 / 3, -0.1]), "advantage": np.asarray([0.1, 0.1])}
    flat = Sample([1, 2, 3], [False, True, True], {**numbers, "advantage": np.zeros(2)})
    more = Sample([1, 2, 3], [False, True, True], {**numbers, "reference": np.zeros(2)})
    made.add([flat, flat, more, flat], 2)
    again = Gathering()
    again.restore(made.state())
    assert made.groups == again.groups == 1
    (one, other), (mine, theirs) = made.take(), again.take()
    for a, b in ((one, mine), (other, theirs)):
        assert (a.ids, a.wrote) == (b.ids, b.wrote)
        assert a.known.keys() == b.known.keys() == numbers.keys()
        assert all(np.array_equal(a.known[name], b.known[name]) for name in numbers)
    assert made.take() == []
    assert made.groups == 0


def test_that_hardly_any_group_teaches_is_told(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "WATCHED", 2)
    same = [{"kind": "format", "pattern": ".*"}]
    out, _ = reinforce(work, model, talks, rewards=same, train={"steps": 3, "lr": 1e-3})
    said = [row["problem"] for row in events.read(out.parent / "log" / "events.jsonl") if "problem" in row]
    assert len(said) == 2
    assert "in every group of the first 2 steps" in said[0]
    assert "in every group of all 3 steps" in said[1]
    assert not any("few others" in each for each in said)
    some = Flat()
    assert [some.step(0.8, [0.5], last=number == 3) for number in range(4)] == [None] * 4
    other = Flat()
    assert other.step(1.0, [0.0]) is None
    later = Flat()
    later.restore(other.state())
    assert "90% of the groups of the first 2 steps all answers are worth the same (0 in the mean)" in (
        later.step(0.8, [0.0, 0.0]) or ""
    )
    most = Flat()
    most.step(1.0, [0.0])
    assert "in 99% of the groups" in (most.step(0.995, [0.0, 0.0]) or ""), "not all of them"
