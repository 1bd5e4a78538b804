"""Which settings of a policy go with which algorithm."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from shunter.post.config import PolicyConfig

OF_PPO = {"gamma": 0.5, "lam": 0.1, "value_clip": 9.0, "value_weight": 7.0, "value_lr": 3.0}


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "dr_grpo", "rloo", "reinforce++", "gspo"])
@pytest.mark.parametrize("name", OF_PPO)
def test_settings_of_a_value_model_go_with_ppo_alone(algorithm: str, name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} .*ppo.*{algorithm.replace('+', '.')}"):
        PolicyConfig.model_validate({"algorithm": algorithm, name: OF_PPO[name]})


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "reinforce++"])
def test_a_divergence_in_the_reward_has_no_estimator(algorithm: str) -> None:
    with pytest.raises(ValidationError, match=r"in the reward, .* leave estimator out"):
        PolicyConfig.model_validate({"algorithm": algorithm, "estimator": "k2", "kl": 0.1})


def test_k1_is_refused_with_where_it_belongs() -> None:
    with pytest.raises(ValidationError, match=r"no gradient in the mean: .*ppo, reinforce\+\+ and rloo"):
        PolicyConfig.model_validate({"estimator": "k1", "kl": 0.1})


@pytest.mark.parametrize(
    "given",
    [
        {"algorithm": "ppo", **OF_PPO},
        {"algorithm": "gspo", "estimator": "k2", "kl": 0.1},
        {"algorithm": "dapo", "estimator": "k2", "kl": 0},
    ],
)
def test_what_an_algorithm_reads_is_taken(given: dict[str, Any]) -> None:
    """And what configurations of others say by default, as one that was written out does; and an estimator
    in a sweep over `kl` that begins at 0."""
    made = PolicyConfig.model_validate(given)
    assert PolicyConfig.model_validate(made.model_dump()) == made
    plain = PolicyConfig(algorithm="reinforce++")
    assert PolicyConfig.model_validate(plain.model_dump()) == plain
