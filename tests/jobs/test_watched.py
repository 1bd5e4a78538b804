"""What a run is told of a policy that learning leads astray, or that its generator does not agree with.

What this cannot show: that the bands are right for a large model; they are far outside of what ours do here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.generate import rollout
from shunter.post.batch import Sample
from shunter.post.watched import Watch, surprise
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.jobs.conftest import Still, Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks

__all__ = ["model", "talks"]  # fixtures
ASTRAY = {"train": {"steps": 8, "lr": 1.0}}


def said(out: Path) -> list[str]:
    return [row["problem"] for row in events.read(out.parent / "log" / "events.jsonl") if "problem" in row]


def seen(watch: Watch, entropies: list[float], rewards: list[float]) -> list[str | None]:
    return [watch.step(entropy, rewards[:number]) for number, entropy in enumerate(entropies, 1)]


def test_how_unlikely_answers_were_is_a_mean_over_tokens() -> None:
    one = Sample([1, 2, 3], [False, True, True], {"old": np.asarray([-1.0, -2.0])})
    other = Sample([1, 2], [False, True], {"old": np.asarray([-6.0])})
    assert surprise([one, other]) == 3.0
    none = Sample([1], [False], {"old": np.zeros(0)})
    assert math.isnan(surprise([none]))
    assert Watch(300).step(math.nan, [0.0]) is None


def test_a_policy_that_says_the_same_always_and_is_worth_less() -> None:
    worse, better = [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9]
    fallen = [2.0, 1.0, 0.5, 0.01, 0.02, 0.01, 0.01]
    *before, told, after = seen(Watch(300), fallen, worse)
    assert before == [None] * 5
    assert after is None, "once"
    assert "an entropy of 0.01 nats a token, 2 at first, and are worth less (0.1, 0.5 at first)" in str(told)
    assert seen(Watch(300), fallen, better) == [None] * 7, "sure, and right"
    assert seen(Watch(300), [2.0, 0.01, 0.01, 1.0, 0.01, 0.01, 1.0], worse) == [None] * 7, "now and then"


@pytest.mark.parametrize(("mean", "spread"), [(0.95, 0.004), (0.0, 0.01), (0.5, 0.05)])
def test_a_sure_policy_is_not_worth_less_by_noise(mean: float, spread: float) -> None:
    noise = np.random.default_rng(1).normal(size=60)
    rewards = (mean + spread * noise).tolist()
    assert np.mean(rewards[3:6]) < np.mean(rewards[:3])
    assert seen(Watch(300), [2.0] * 3 + [0.01] * 57, rewards) == [None] * 60
    worse = [*rewards[:30], *(each - 8 * spread - mean / 2 for each in rewards[30:])]
    told = [each for each in seen(Watch(300), [2.0] * 3 + [0.01] * 57, worse) if each]
    assert len(told) == 1
    found = re.search(r"worth less \((\S+), (\S+) at first\)", told[0])
    assert found is not None
    assert float(found[1]) < float(found[2]), "as printed"


def test_a_policy_that_draws_blindly() -> None:
    equal = [0.5] * 5
    found = seen(Watch(300), [1.0, 5.0, 2.0, 5.7, 1.0], equal)
    assert [each is not None for each in found] == [False, False, False, True, False], "once, nearly blind"
    assert f"{math.log(300):.2g} would be blind draws" in str(found[3])
    found = seen(Watch(300), [1.0, 5.0, 5.0, 5.0, 1.0], equal)
    assert [each is not None for each in found] == [False, False, True, False, False], "two in a row"
    found = seen(Watch(300), [1.0, 1.0, 1.0, 1.0, 5.0, 2.0], [0.5, 0.5, 0.5, 0.5, 0.0, 0.0])
    assert [each is not None for each in found] == [False] * 4 + [True, False], "one, and worth less"
    assert seen(Watch(300), [5.5, 5.7, 5.7, 5.7, 5.7], equal) == [None] * 5, "it never knew more"
    assert seen(Watch(300), [1.0, 2.0, 3.0, 3.0, 3.0], equal) == [None] * 5


def test_one_that_tries_other_answers_and_gains_is_let_be() -> None:
    """Half of the way is not far where there are few words and the first answers were sure."""
    entropies, rewards = np.linspace(0.4, 1.5, 9).tolist(), np.linspace(0.1, 0.9, 9).tolist()
    assert seen(Watch(12), [*entropies, 1.5, 1.5], [*rewards, 0.9, 0.9]) == [None] * 11
    told = seen(Watch(12), [*entropies, 1.5, 1.5], [0.1] * 11)
    assert [each is not None for each in told] == [False] * 9 + [True, False]


def test_of_a_run_whose_beginning_was_not_watched_nothing_is_said() -> None:
    """It went on from a checkpoint from before there was a watch."""
    watch = Watch(300)
    for step in range(5, 10):
        assert watch.step(5.6 if step > 6 else 0.1, [0.9, 0.9, 0.9, *[0.0] * step]) is None


def test_what_was_seen_and_told_outlasts_a_stop() -> None:
    fallen, worse = [2.0, *[0.01] * 5], [0.5, *[0.0] * 5]
    one = Watch(300)
    seen(one, fallen[:-1], worse)
    other = Watch(300)
    other.restore(one.state())
    assert other.first == 2.0
    assert seen(other, fallen[-1:], worse) == [None], "of a reward that has not fallen yet"
    other.restore(one.state())
    assert other.step(0.01, worse) is not None
    again = Watch(300)
    again.restore(other.state())
    assert again.step(0.01, worse) is None
    seen(one := Watch(300), [1.0, 5.0], [0.5, 0.5])
    other.restore(one.state())
    assert other.step(5.0, [0.5] * 3) is not None, "the second step in a row"


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
def test_a_rate_that_is_far_too_high_is_told_once(
    work: Work, model: Path, talks: Path, placement: Any
) -> None:
    more = {**ASTRAY, "how": {**HOW, "placement": placement}}
    with pytest.raises(Stopped):
        reinforce(work, model, talks, name="high", control=Still(stop_after=2), **more)
    out, _ = reinforce(work, model, talks, name="high", **more)
    (told,) = (each for each in said(out) if "entropy" in each)
    assert "worth less" in told
    assert "5.6 at first" in told
    slow, _ = reinforce(work, model, talks, name="slow", how=more["how"])
    assert said(slow) == []


@pytest.mark.parametrize(
    "how", [{}, {"writer": "here"}, {"placement": {"backend": "inline"}}], ids=["epochs", "stale", "placed"]
)
def test_updates_that_leave_the_weights_that_wrote_are_told(
    work: Work, model: Path, talks: Path, how: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"staleness": 1} if how else {"policy": {"epochs": 3}}
    train = {"steps": 3, "lr": 0.5}
    out, _ = reinforce(work, model, talks, train=train, how={**HOW, **how}, **more)
    assert sum("from the weights that wrote what it learns from" in each for each in said(out)) == 1
    slow, _ = reinforce(work, model, talks, name="slow", how={**HOW, **how}, **more)
    assert said(slow) == []


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
@pytest.mark.parametrize(("algorithm", "told"), [("gspo", 1), ("grpo", 0)])
def test_clips_by_rounding_alone_are_told(
    work: Work,
    model: Path,
    talks: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    told: int,
    placement: Any,
) -> None:
    """As of a generator in bfloat16: GSPO's clip is at 3e-4."""
    pick, draw = rollout.pick, torch.Generator().manual_seed(0)

    def off(*args: Any) -> Any:
        tokens, logprobs, best = pick(*args)
        return tokens, logprobs + 0.01 * torch.randn(logprobs.shape, generator=draw), best

    monkeypatch.setattr(rollout, "pick", off)
    policy, train = {"algorithm": algorithm}, {"steps": 4, "lr": 1e-5}
    how = {**HOW, "placement": placement}
    out, _ = reinforce(work, model, talks, max_gap=0.02, policy=policy, train=train, how=how)
    found = [each for each in said(out) if "are clipped before anything is learnt" in each]
    assert len(found) == told
    assert all("Set train.precision to fp32, or widen policy.clip_low" in each for each in found)
