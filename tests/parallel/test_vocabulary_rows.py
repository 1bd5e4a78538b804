"""A head cut over tensor ranks into unequal parts: losses, scores and gradients of the whole one."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from shunter.layout.grid import Grid
from shunter.layout.piece import balanced
from shunter.models import head
from shunter.models.scores import linear_scores
from shunter.parallel.mesh import Groups
from shunter.parallel.tensor import VocabularyRows
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool

COUNT, WORDS, DIM = 96, 5, 3


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, DIM, generator=draw, dtype=torch.float64) for n in (COUNT, WORDS))
    factors = torch.randn(2, COUNT, generator=draw, dtype=torch.float64)
    return hidden, weight, torch.randint(0, WORDS, (COUNT,), generator=draw), factors


def results(what: str, weight: Tensor, others: Any = None) -> tuple[list[Tensor], Tensor, Tensor]:
    """Scores, and gradients of hidden states and weight."""
    hidden, _, targets, factors = tensors()
    hidden.requires_grad_()
    weight = weight.clone().requires_grad_()
    if what == "loss":
        loss, logprobs = head.linear_cross_entropy(hidden, weight, targets, factors[0], others=others)
        found = [loss.detach(), logprobs]
    else:
        logprobs, entropies = linear_scores(
            hidden, weight, targets, temperature=0.7, entropies=True, others=others
        )
        loss = (factors[0] * logprobs + factors[1] * entropies).sum()
        found = [logprobs.detach(), entropies.detach()]
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return found, hidden.grad, weight.grad


def cut(rank: int, groups: Groups, what: str) -> tuple[list[Tensor], Tensor, Tensor]:
    peers = World.create(Grid(tp=2), rank, torch.device("cpu"), GROUPS).mesh.peers("tp")
    begin, end = balanced(WORDS, peers.size, peers.index)
    # 64 rows a chunk for three words; 96 for two, which would be one meeting for two of the other's.
    with mock.patch.object(head, "CHUNK_BYTES", 64 * 8 * 3):
        return results(what, tensors()[1][begin:end], VocabularyRows(begin, peers, WORDS))


@pytest.mark.parametrize("what", ["loss", "scores"])
def test_parts_of_unequal_size_meet_for_the_same_tokens(pool: Pool, what: str) -> None:
    scores, of_hidden, of_weight = results(what, tensors()[1])
    (found, left, above), (again, right, below) = pool.run(cut, 2, what, Grid(tp=2))
    for expected, one, two in zip(scores, found, again, strict=True):
        torch.testing.assert_close(one, expected)
        torch.testing.assert_close(two, expected)
    torch.testing.assert_close(left + right, of_hidden)
    torch.testing.assert_close(torch.cat([above, below]), of_weight)
