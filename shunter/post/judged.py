"""From rewards of a step's answers to what the policy learns from: an advantage a token, by algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shunter.generate.rollout import Rollout
from shunter.post.advantages import (
    Array,
    Scale,
    gae,
    group_relative,
    leave_one_out,
    returns,
    token_rewards,
    whitened,
)
from shunter.post.batch import Sample
from shunter.post.config import IN_REWARD, PolicyConfig
from shunter.post.policy import PolicySettings

_SETTINGS = {
    "ppo": PolicySettings(average="token"),
    "grpo": PolicySettings(),
    "dapo": PolicySettings(average="token", clip_high=0.28),
    "dr_grpo": PolicySettings(average="constant"),
    "rloo": PolicySettings(ratio="sum"),
    "reinforce++": PolicySettings(average="token"),
    "gspo": PolicySettings(ratio="sequence", clip_low=3e-4, clip_high=4e-4),
}


def settings(config: PolicyConfig, max_new_tokens: int) -> PolicySettings:
    """The objective's settings of a configuration."""
    found = _SETTINGS[config.algorithm]
    given = {name: getattr(config, name) for name in ("clip_low", "clip_high") if getattr(config, name)}
    kl = 0.0 if config.algorithm in IN_REWARD else config.kl
    return replace(
        found, **given, kl=kl, estimator=config.estimator, entropy=config.entropy, length=max_new_tokens
    )


def judge(
    config: PolicyConfig,
    done: Sequence[Rollout],
    rewards: Sequence[float],
    groups: Sequence[int],
    reference: Sequence[Array] | None,
    values: Sequence[Array] | None = None,
    *,
    masks: bool = False,
) -> list[Sample]:
    """A sample a rollout, with `old` and `advantage` of each token that the model wrote, and for ppo `value`
    and `return`.

    reference: its log-probability of each token written, which the samples then hold; None where it is not
    asked, which needs a `kl` of 0. values: the value model's. masks: what was cut off counts in the mean of
    its group, as its reward says, and is not learnt from itself; nor is it whitened with what is.
    """
    assert reference is not None or config.kl == 0
    masked = [masks and one.stop_reason != "stop" for one in done]
    old = [np.asarray(one.logprobs, dtype=np.float64)[np.asarray(one.wrote)] for one in done]
    more: list[dict[str, Array]] = [{} for _ in done]
    apart = reference or old
    if config.algorithm in ("ppo", "reinforce++"):
        each = [token_rewards(r, o, f, config.kl) for r, o, f in zip(rewards, old, apart, strict=True)]
        if config.algorithm == "ppo":
            assert values is not None
            raw = [gae(r, v, config.gamma, config.lam) for r, v in zip(each, values, strict=True)]
            more = [{"value": v, "return": a + v} for a, v in zip(raw, values, strict=True)]
        else:
            raw = [returns(r) for r in each]
        advantages = whitened(raw, left_out=masked)
    else:
        if config.algorithm == "rloo":
            far = [float((o - f).sum()) for o, f in zip(old, apart, strict=True)]
            rewards = [r - config.kl * d for r, d in zip(rewards, far, strict=True)]
            sums = leave_one_out(rewards, groups)
        else:
            scale: Scale = "none" if config.algorithm == "dr_grpo" else "group"
            sums = group_relative(rewards, groups, scale=scale)
        advantages = [np.full(len(o), a) for o, a in zip(old, sums, strict=True)]
    if reference is not None:
        more = [{**known, "reference": f} for known, f in zip(more, reference, strict=True)]
    return [
        Sample(
            [*one.prompt, *one.ids],
            [False] * len(one.prompt) + one.wrote,
            {"old": o, "advantage": a, **known},
            masked=out,
        )
        for one, out, o, a, known in zip(done, masked, old, advantages, more, strict=True)
    ]


def flat_groups(rewards: Sequence[float], groups: Sequence[int]) -> float:
    """The share of groups whose rewards are all equal, from which nothing is learnt by comparison."""
    of: dict[int, set[float]] = {}
    for reward, group in zip(rewards, groups, strict=True):
        of.setdefault(group, set()).add(reward)
    return sum(len(found) == 1 for found in of.values()) / max(1, len(of))
