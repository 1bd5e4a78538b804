"""Advantages against their definitions, and what must not change them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.generate.rollout import Rollout
from shunter.post.advantages import gae, group_relative, leave_one_out, returns, token_rewards, whitened
from shunter.post.config import PolicyConfig
from shunter.post.judged import flat_groups, judge

REWARDS = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


@given(REWARDS, st.randoms(use_true_random=False))
def test_groups_are_apart(rewards: list[float], draw: object) -> None:
    """Each group as if it were alone, in any order."""
    groups = [i % 3 for i in range(len(rewards))]
    order = list(range(len(rewards)))
    draw.shuffle(order)  # type: ignore[attr-defined]
    for rule in (group_relative, leave_one_out):
        whole = rule(rewards, groups)
        mixed = rule([rewards[i] for i in order], [groups[i] for i in order])
        np.testing.assert_allclose(mixed, whole[order])
        for group in set(groups):
            mine = [i for i, g in enumerate(groups) if g == group]
            np.testing.assert_allclose(rule([rewards[i] for i in mine], [0] * len(mine)), whole[mine])


def test_equal_rewards_and_lonely_samples_teach_nothing() -> None:
    for rule in (group_relative, leave_one_out):
        assert rule([0.1, 0.1, 0.1, 5.0], [1, 1, 1, 2]) == pytest.approx([0, 0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("reward", [0.1, 1.1, -0.7, 1e-9])
@pytest.mark.parametrize("count", [1, 3, 6, 7, 12])
def test_a_flat_group_is_exactly_flat(reward: float, count: int) -> None:
    """Adam makes a whole step of 1e-17."""
    for rule in (group_relative, leave_one_out):
        assert not rule([reward] * count, [0] * count).any()
    assert not any(part.any() for part in whitened([np.full(1, reward)] * count))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_leave_one_out_is_what_it_says(rewards: list[float]) -> None:
    expected = [r - np.mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    np.testing.assert_allclose(leave_one_out(rewards, [0] * len(rewards)), expected, atol=1e-12)


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), max_size=8), st.floats(0.5, 1), st.floats(0, 1)
)
def test_gae_is_its_sum(pairs: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards, values = (np.array([pair[i] for pair in pairs]) for i in range(2))
    following = np.append(values[1:], 0.0)
    delta = rewards + gamma * following[: len(rewards)] - values
    expected = [
        sum((gamma * lam) ** k * delta[t + k] for k in range(len(delta) - t)) for t in range(len(delta))
    ]
    np.testing.assert_allclose(gae(rewards, values, gamma, lam), expected, atol=1e-12)
    np.testing.assert_allclose(gae(rewards, values, gamma, 1.0) + values, returns(rewards, gamma), atol=1e-12)


def test_the_reward_stands_at_the_last_token_and_the_divergence_at_each() -> None:
    found = token_rewards(-10.0, [-1.0, -2.0], [-1.5, -1.0], 0.1)
    assert found.tolist() == pytest.approx([-0.05, 0.1 - 10])
    assert len(token_rewards(1.0, [], [], 0.1)) == 0


def test_whitening_is_over_all_tokens() -> None:
    parts = whitened([np.array([1.0, 2.0]), np.array([]), np.array([6.0])])
    together = np.concatenate(parts)
    assert together.mean() == pytest.approx(0, abs=1e-12)
    assert together.std() == pytest.approx(1, abs=1e-6)
    assert [len(part) for part in parts] == [2, 0, 1]
    assert whitened([]) == []


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "dr_grpo", "rloo", "gspo"])
def test_a_group_of_equal_rewards_gives_nothing_beside_one_that_does(algorithm: Any) -> None:
    done = [Rollout(ids=[5, 6], logprobs=[-0.1] * 2, prompt=[1], versions=[0, 0], wrote=[True] * 2)] * 6
    rewards, groups = [0.1, 0.1, 0.1, 1.0, 0.0, 1.0], [0, 0, 0, 1, 1, 1]
    samples = judge(PolicyConfig(algorithm=algorithm), done, rewards, groups, None)
    advantages = [np.asarray(sample.known["advantage"]) for sample in samples]
    assert not any(each.any() for each in advantages[:3]), "exactly nothing"
    assert all(each.all() for each in advantages[3:])
    assert flat_groups(rewards, groups) == 0.5
