"""Forward and backward passes of a whole model, however it is laid out over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.models.dropout import Masks
from shunter.models.head import linear_cross_entropy
from shunter.models.moe import begin_step
from shunter.models.segments import SegmentPlan
from shunter.train.device import autocast
from shunter.train.dropping import Dropping


class Passes(Protocol):
    """What a step needs of a layout. All ranks call the same methods in one order; those that see the same
    rows, with the same."""

    def gradients(
        self,
        batches: Sequence[Batch],
        coefficients: Sequence[Tensor],
        z_loss: float,
        dropping: Dropping | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of sum of coefficient x log-probability, and of the z-loss, to `.grad`.

        coefficients: [B, T] of each micro-batch. dropping: what is dropped of them. Returns that sum as
        float64 scalars, with and without the z-loss, over all ranks.
        """

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks that see other rows; each gives what it counts in its own."""

    def loss(self, batches: Sequence[Batch], coefficients: Sequence[Tensor]) -> Tensor:
        """The sum alone, without gradients, of rows that all ranks have; float64 scalar."""

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient of the whole model down to `limit`; returns its norm before."""


class OnePass:
    """The whole model in this process. model is `decoder`, or its compiled form."""

    def __init__(
        self, model: torch.nn.Module, decoder: Decoder, device: torch.device, precision: str
    ) -> None:
        self.model, self.decoder, self.device, self.precision = model, decoder, device, precision

    def total(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def gradients(
        self,
        batches: Sequence[Batch],
        coefficients: Sequence[Tensor],
        z_loss: float,
        dropping: Dropping | None = None,
    ) -> tuple[Tensor, Tensor]:
        whole = torch.zeros((), dtype=torch.float64, device=self.device)
        plain = torch.zeros_like(whole)
        begin_step(self.decoder, sum(int((batch.segments >= 0).sum()) for batch in batches))
        for number, (batch, factors) in enumerate(zip(batches, coefficients, strict=True)):
            masks = None if dropping is None else dropping.masks(number, batch.tokens.shape[1], self.device)
            part, without = self._forward(self.model, batch, factors, z_loss, masks)
            part.backward()
            whole += part.detach()
            plain += without
        return whole, plain

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch], coefficients: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, factors in zip(batches, coefficients, strict=True):
            total += self._forward(self.decoder, batch, factors, 0.0)[0]
        return total

    def clip(self, limit: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), limit)

    def _forward(
        self,
        model: torch.nn.Module,
        batch: Batch,
        coefficients: Tensor,
        z_loss: float,
        masks: Masks | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum as two scalars: with the z-loss and with a gradient, and without both."""
        tokens, positions, targets = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (batch.tokens, batch.positions, batch.targets)
        )
        plan = SegmentPlan.build(torch.from_numpy(batch.segments).to(self.device))
        if masks is not None:
            plan = replace(plan, masks=masks)
        factors = coefficients.to(self.device, non_blocking=True).flatten()
        with autocast(self.device, self.precision):
            hidden = model(tokens, positions, plan)
            loss, logprobs = linear_cross_entropy(
                hidden.flatten(0, 1),
                self.decoder.head_weight,
                targets.flatten(),
                factors,
                z_loss=z_loss,
                into_grad=True,
            )
        return loss, without_z(loss, logprobs, factors, z_loss)


def without_z(loss: Tensor, logprobs: Tensor, coefficients: Tensor, z_loss: float) -> Tensor:
    """The sum of coefficient x log-probability alone, detached; all [N] but the loss."""
    return (coefficients.double() * logprobs.double()).sum() if z_loss else loss.detach()
