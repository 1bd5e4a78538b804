"""How much better than expected: advantages from rewards, before any gradient. Plain numbers, float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scale = Literal["group", "none"]


def group_relative(
    rewards: Sequence[float], groups: Sequence[int], *, scale: Scale = "group", eps: float = 1e-4
) -> Array:
    """[n]: (R - mean of its group) / (standard deviation of its group + eps) (arXiv 2402.03300, 4.1.2).

    groups: the prompt that each was written for. The deviation has n - 1 below it, as torch's and trl's have.
    scale none: the difference alone (Dr. GRPO, arXiv 2503.20783). A group of equal rewards, or of one, gives
    0.
    """
    given, of = np.asarray(rewards, dtype=np.float64), np.asarray(groups)
    found = np.zeros(len(given))
    for group in np.unique(of):
        mine = of == group
        if _equal(given[mine]):  # its mean is rounded: differences would be 1e-17, which Adam makes a step of
            continue
        apart = given[mine] - given[mine].mean()
        if scale == "group" and mine.sum() > 1:
            apart /= given[mine].std(ddof=1) + eps
        found[mine] = apart
    return found


def leave_one_out(rewards: Sequence[float], groups: Sequence[int]) -> Array:
    """[n]: R - mean of the others in its group (RLOO, arXiv 2402.14740, equation 10); 0 in a group of one."""
    given, of = np.asarray(rewards, dtype=np.float64), np.asarray(groups)
    found = np.zeros(len(given))
    for group in np.unique(of):
        mine = of == group
        count = int(mine.sum())
        if count > 1 and not _equal(given[mine]):
            found[mine] = (given[mine] - given[mine].mean()) * count / (count - 1)
    return found


def token_rewards(
    reward: float, old: Sequence[float] | Array, reference: Sequence[float] | Array, kl: float
) -> Array:
    """[t]: -kl x (log old - log reference) at each token, and the reward at the last one (arXiv 2203.02155).

    An answer without a token has no place for its reward and gives an empty array.
    """
    found = -kl * (np.asarray(old, dtype=np.float64) - np.asarray(reference, dtype=np.float64))
    if len(found):
        found[-1] += reward
    return found


def returns(rewards: Array, gamma: float = 1.0) -> Array:
    """[t]: the discounted sum of this and all later rewards."""
    found, following = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + gamma * following
        found[t] = following
    return found


def gae(rewards: Array, values: Array, gamma: float = 1.0, lam: float = 0.95) -> Array:
    """[t]: sum over k of (gamma lam)^k d_(t+k), d_t = r_t + gamma V_(t+1) - V_t (arXiv 1506.02438, eq. 16).

    Nothing follows the last token. Returns are these plus the values.
    """
    found, following, after = np.zeros(len(rewards)), 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + gamma * after - values[t] + gamma * lam * following
        found[t], after = following, values[t]
    return found


def whitened(parts: Sequence[Array], eps: float = 1e-8, *, left_out: Sequence[bool] = ()) -> list[Array]:
    """Mean 0 and variance 1 over all tokens of all sequences together; exact zeros where all are equal but
    for the rounding of a sum. left_out: of each sequence, whether those two are of the others alone."""
    out = left_out or [False] * len(parts)
    together = np.concatenate([np.zeros(0), *(part for part, no in zip(parts, out, strict=True) if not no)])
    if not len(together) or together.max() - together.min() <= 1e-12 * np.abs(together).max():
        return [np.zeros_like(part) for part in parts]
    mean, deviation = together.mean(), together.std()
    return [(part - mean) / (deviation + eps) for part in parts]


def _equal(rewards: Array) -> bool:
    return bool((rewards == rewards[0]).all())
