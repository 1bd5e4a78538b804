"""Objectives: a loss with a meaning that does not depend on micro-batches or layout.

The normaliser is counted over the whole global batch *before* the first forward, so each token's
coefficient in the loss is a constant, accumulation is plain addition, and the head can take its
gradient in the forward pass without keeping logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shunter.data.tokens import Batch

Counts = Mapping[str, float]
Scope = Literal["token", "sequence", "pair", "batch"]


class Objective(Protocol):
    """A loss over scores of a batch.

    needs:  which scores the head shall produce: logprob, entropy, hidden, value.
    scope:  what one term belongs to: token, sequence, pair, batch.
    """

    needs: frozenset[str]
    scope: Scope

    def weights(self, batch: Batch) -> dict[str, float]:
        """Count of each term in `batch`; counts of micro-batches and ranks are added up."""

    def coefficients(self, batch: Batch, counts: Counts) -> NDArray[np.float64]:
        """[B, T]: the derivative of the loss with respect to each target's log-probability."""


class CrossEntropy:
    """Mean negative log-probability of the targets over all valid tokens of the global batch."""

    needs = frozenset({"logprob"})
    scope: Scope = "token"

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"token": float(batch.num_valid)}

    def coefficients(self, batch: Batch, counts: Counts) -> NDArray[np.float64]:
        valid = batch.targets != -100
        return np.where(valid, -1.0 / max(counts["token"], 1.0), 0.0)


def total(objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """The counts of a step: the sum over its micro-batches."""
    counts: dict[str, float] = {}
    for batch in batches:
        for term, value in objective.weights(batch).items():
            counts[term] = counts.get(term, 0.0) + value
    return counts
