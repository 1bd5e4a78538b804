"""A job rl that is killed at any point ends as one that was not: rewards, answers, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shunter.record import events, points
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks, weights

__all__ = ["model", "talks"]  # fixtures


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


@pytest.mark.parametrize(
    "point",
    ["train.update", *(pytest.param(p, marks=pytest.mark.long) for p in ("train.step", "checkpoint.rename"))],
)
def test_killed_and_resumed_the_curve_is_the_same(work: Work, model: Path, talks: Path, point: str) -> None:
    whole, _ = reinforce(work, model, talks, name="whole", how={**HOW, "deterministic": True})
    for at in (1, 3, 4):

        def hook(name: str, facts: dict[str, Any], at: int = at) -> None:
            if name == point and facts["step"] == at:
                raise Killed

        points.install(hook)
        try:
            with pytest.raises(Killed):
                reinforce(work, model, talks, name="cut", how={**HOW, "deterministic": True})
        except pytest.fail.Exception:
            assert point == "checkpoint.rename"  # there is none after an odd step
        finally:
            points.install(None)
    out, _ = reinforce(work, model, talks, name="cut", how={**HOW, "deterministic": True})
    assert weights(out) == weights(whole)
    for name in ("rewards.json", "samples.jsonl"):
        mine, theirs = (folder.joinpath(name).read_text() for folder in (out, whole))
        assert mine.replace('"cut"', '"whole"') == theirs
    curves = [
        [row["rl/reward"] for row in events.read_metrics(folder.parent / "log" / "events.jsonl")]
        for folder in (out, whole)
    ]
    assert curves[0] == curves[1]


def test_answers_that_were_written_before_a_kill_are_not_written_again(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shunter.generate.rollout import RolloutEngine

    def hook(name: str, facts: dict[str, Any]) -> None:
        if name == "train.step" and facts["step"] == 2:
            raise Killed

    points.install(hook)
    try:
        with pytest.raises(Killed):
            reinforce(work, model, talks)
    finally:
        points.install(None)
    written: list[int] = []
    submit = RolloutEngine.submit
    monkeypatch.setattr(
        RolloutEngine, "submit", lambda self, *a, **k: written.append(1) or submit(self, *a, **k)
    )
    reinforce(work, model, talks)
    assert len(written) == 2 * 12, "the third step's answers were in the journal"


@pytest.mark.parametrize("point", ["checkpoint.reserve", "checkpoint.rename"])
def test_the_journal_outlives_a_checkpoint_that_is_not_there_yet(
    work: Work, model: Path, talks: Path, tmp_path: Path, point: str
) -> None:
    def hook(name: str, facts: dict[str, Any]) -> None:
        if name == point:
            raise Killed

    points.install(hook)
    try:
        with pytest.raises(Killed):
            reinforce(work, model, talks)
    finally:
        points.install(None)
    assert len(list(tmp_path.rglob("rollouts/step-*.jsonl"))) == 2
    reinforce(work, model, talks)
    left = [path.stem for path in tmp_path.rglob("rollouts/step-*.jsonl")]
    assert sorted(left) == ["step-00000004"], "steps that the two kept checkpoints, 4 and 5, do not both hold"


def test_killed_in_the_middle_of_writing_the_weights_are_the_same(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shunter.post.journal import Journal

    how = {**HOW, "deterministic": True}
    train = {"steps": 3, "lr": 1e-3}
    whole, _ = reinforce(work, model, talks, name="whole", how=how, train=train)
    write = Journal.write

    def cut(self: Journal, step: int, answers: Any) -> None:
        write(self, step, dict(list(answers.items())[:5]))
        if step == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", cut)
        with pytest.raises(Killed):
            reinforce(work, model, talks, name="cut", how=how, train=train)
    out, _ = reinforce(work, model, talks, name="cut", how=how, train=train)
    assert weights(out) == weights(whole)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_ten_random_kills(work: Work, model: Path, talks: Path, seed: int) -> None:
    """At points drawn at random, one after the other; the end is that of a run that nobody disturbed."""
    how, train = {**HOW, "deterministic": True}, {"steps": 12, "lr": 1e-3}
    whole, _ = reinforce(work, model, talks, name="whole", how=how, train=train)
    draw = np.random.default_rng(seed)
    kills = 0
    while kills < 10:
        left = int(draw.integers(1, 9))  # passages of any point until the kill

        def hook(name: str, facts: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        points.install(hook)
        try:
            reinforce(work, model, talks, name="cut", how=how, train=train)
            break  # it came through
        except Killed:
            kills += 1
        finally:
            points.install(None)
    assert kills == 10
    out, _ = reinforce(work, model, talks, name="cut", how=how, train=train)
    assert weights(out) == weights(whole)
    assert (out / "rewards.json").read_text() == (whole / "rewards.json").read_text()
    curves = [
        [row["rl/reward"] for row in events.read_metrics(folder.parent / "log" / "events.jsonl")]
        for folder in (out, whole)
    ]
    assert curves[0] == curves[1]
