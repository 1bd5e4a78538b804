"""One optimizer step, written out in order, so that a layout can be applied to it later."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.models.head import linear_cross_entropy
from shunter.models.segments import SegmentPlan
from shunter.record.points import reach
from shunter.train.device import autocast
from shunter.train.objective import Objective, total
from shunter.train.optim import Optimizers


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the step's valid tokens, nats/token, without the z-loss. grad_norm: before clipping.
    rate: learning rate of the step."""

    loss: float
    grad_norm: float
    tokens: int
    updated: bool  # False: loss or gradient was not finite, and nothing was changed
    rate: float
    z_loss: float = 0.0  # the term that was added to `loss`, its weight included


def forward_loss(
    model: torch.nn.Module,
    decoder: Decoder,
    batch: Batch,
    coefficients: Tensor,
    device: torch.device,
    precision: str,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """sum of coefficient x log-probability over the batch's targets, as two scalars: with the z-loss and
    with a gradient, and without both."""
    tokens, positions, targets = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.tokens, batch.positions, batch.targets)
    )
    plan = SegmentPlan.build(torch.from_numpy(batch.segments).to(device))
    with autocast(device, precision):
        hidden = model(tokens, positions, plan)
        loss, logprobs = linear_cross_entropy(
            hidden.flatten(0, 1),
            decoder.head_weight,
            targets.flatten(),
            coefficients.flatten(),
            z_loss=z_loss,
        )
    if not z_loss:
        return loss, loss.detach()
    return loss, (coefficients.flatten().double() * logprobs.double()).sum()


def train_step(
    model: torch.nn.Module,
    decoder: Decoder,
    optimizers: Optimizers,
    objective: Objective,
    batches: list[Batch],
    *,
    step: int,
    rate: float,
    clip: float,
    device: torch.device,
    precision: str,
    z_loss: float = 0.0,
) -> StepResult:
    """Accumulate the gradient of the global batch over its micro-batches, then update once.

    model is `decoder`, or its compiled form. The result does not depend on how the rows were split
    into `batches`, up to the rounding of sums.
    """
    directive = reach("train.step", step=step)
    counts = total(objective, batches)
    whole = torch.zeros((), dtype=torch.float64, device=device)
    loss = torch.zeros_like(whole)
    for batch in batches:
        coefficients = torch.from_numpy(objective.coefficients(batch, counts)).to(device)
        part, plain = forward_loss(model, decoder, batch, coefficients, device, precision, z_loss)
        part.backward()
        whole += part.detach()
        loss += plain
    if directive == "nan":
        whole, loss = whole * math.nan, loss * math.nan
    norm = torch.nn.utils.clip_grad_norm_(decoder.parameters(), clip)
    reach("train.update", step=step)
    # One transfer for all: on CUDA each would wait for the device.
    whole_value, loss_value, norm_value = torch.stack([whole, loss, norm.double()]).tolist()
    updated = math.isfinite(whole_value) and math.isfinite(norm_value)
    if updated:
        optimizers.step(rate)
    optimizers.zero_grad()
    return StepResult(
        loss=loss_value,
        grad_norm=norm_value,
        tokens=int(sum(batch.num_valid for batch in batches)),
        updated=updated,
        rate=rate,
        z_loss=whole_value - loss_value,
    )
