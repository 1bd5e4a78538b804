"""What a model said before it learnt, without a second model beside it: where adapters alone learn, and where
each rank holds a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.post.laid_out import LaidOutScorer
from shunter.post.objective import Scores
from shunter.post.step import Scorer


class Before(Scorer):
    """Scores, without gradients, of the model that `decoder` is now, whatever it learns later.

    Kept are copies of what is trained. An adapter's second matrix is zero at first, so with the copies in
    their places the model is the one under the adapters. A run that resumes makes this before it restores.
    """

    def __init__(
        self, decoder: Decoder, device: torch.device, precision: str = "fp32", *, temperature: float = 1.0
    ) -> None:
        super().__init__(decoder, device, precision, temperature=temperature)
        self._first = {
            name: parameter.detach().clone()
            for name, parameter in decoder.named_parameters()
            if parameter.requires_grad
        }

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Scores:
        with torch.no_grad(), self._then():
            return super().__call__(batch, needs)

    @contextmanager
    def _then(self) -> Iterator[None]:
        """The first values in the places of the present ones. Tensors change hands, so that nothing is
        copied, and optimizers and gradients know their parameters still."""
        there = dict(self.decoder.named_parameters())
        now = {name: there[name].data for name in self._first}
        try:
            for name, first in self._first.items():
                there[name].data = first
            yield
        finally:
            for name, tensor in now.items():
                there[name].data = tensor


class LaidOutBefore(Scorer):
    """Scores, without gradients, of the model that a layout's ranks have now, whatever it learns later.

    Kept is a copy of this rank's parts. Called by all ranks with the same whole batches, as the scorer is.
    A run that resumes makes this before it restores.
    """

    def __init__(self, scorer: LaidOutScorer) -> None:
        super().__init__(scorer.decoder, scorer.device, scorer.precision, temperature=scorer.temperature)
        self.scorer = scorer
        self._other = {name: tensor.detach().clone() for name, tensor in self._parts().items()}

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Scores:
        with self.then():
            return self.scorer(batch, needs)

    @contextmanager
    def then(self) -> Iterator[LaidOutScorer]:
        """The scorer, whose parts have their first values meanwhile. Values change places one tensor at a
        time: what is sharded has storage that others know."""
        self._exchange()
        try:
            yield self.scorer
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._parts().items():
            there = tensor.detach().clone()
            tensor.copy_(self._other[name])
            self._other[name].copy_(there)

    def _parts(self) -> dict[str, torch.Tensor]:
        return self.scorer.passes.part.state
