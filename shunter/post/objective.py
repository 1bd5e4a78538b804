"""Objectives over scores: losses whose derivative depends on what the model says.

As all objectives, they count their terms over the whole global batch before the first forward, so that the
sum over micro-batches and ranks is the loss, however the batch was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.post.batch import Sequences
from shunter.train.objective import Counts, Scope


@dataclass(frozen=True)
class Scores:
    """What a model says of a batch's targets, [B, T] each, 0 where there is none.

    logprob: of the target, nats.  entropy: of the distribution there, nats.  value: of the state before the
    target, at every real token.
    """

    logprob: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None


class ScoreObjective(Protocol):
    """A loss over scores.

    needs:  logprob, entropy, value.
    scope:  what must stand in one micro-batch: a token, a sequence, or a pair (two sequences that follow
            each other, the better one first).
    """

    needs: frozenset[str]
    scope: Scope

    def weights(self, batch: Batch) -> dict[str, float]:
        """Counts of `batch`; those of micro-batches and ranks are added up."""

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        """Scalars whose sum is this batch's share of the loss; they are added up over micro-batches."""

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        """What people want to see, likewise; a name that begins with `max/` is combined by the largest."""


class Likelihood:
    """SFT: mean negative log-probability of the targets over all targets of the global batch."""

    needs = frozenset({"logprob"})
    scope: Scope = "token"

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"token": float(batch.num_valid)}

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        assert scores.logprob is not None
        seen = Sequences(batch, scores.logprob.device)
        return {"likelihood": -seen.total(scores.logprob) / max(counts["token"], 1.0)}

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        return {}


def loss_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of all terms."""
    first, *rest = terms.values()
    return sum(rest, first)


def coefficients(objective: ScoreObjective, logprob: Tensor, batch: Batch, counts: Counts) -> Tensor:
    """[B, T]: the derivative of the loss by each target's log-probability, at the log-probabilities given.

    With it, an objective of log-probabilities alone is computed under any layout in two passes: one that
    scores, one that takes the gradient of sum of coefficient x log-probability (`Passes.gradients`).
    """
    leaf = logprob.detach().requires_grad_()
    loss = loss_of(objective.terms(Scores(leaf), batch, counts))
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad
