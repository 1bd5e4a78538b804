"""Estimators of KL(policy || reference) from tokens that the policy wrote.

With x = log reference - log policy of a token (J. Schulman, "Approximating KL Divergence", 2020):
k1 = -x, unbiased and of either sign; k2 = x^2 / 2, biased, of low variance, and its gradient is that of KL;
k3 = exp(x) - x - 1, unbiased and never negative. As a term of the loss k1 is useless: the mean of its
gradient is zero. It belongs in the reward.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def divergence(policy: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """The estimate at each token, nats; policy and reference are its log-probabilities."""
    x = reference - policy
    if estimator == "k1":
        return -x
    if estimator == "k2":
        return x.square() / 2
    return x.exp() - x - 1
