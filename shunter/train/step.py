"""One optimizer step, written out in order, so that a layout can be applied to it later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shunter.data.tokens import Batch
from shunter.record.points import reach
from shunter.train.dropping import Dropping
from shunter.train.objective import Objective, total
from shunter.train.optim import Optimizers
from shunter.train.passes import Passes


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


def train_step(
    passes: Passes,
    optimizers: Optimizers,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    step: int,
    rate: float,
    clip: float,
    z_loss: float = 0.0,
    dropping: Dropping | None = None,
) -> StepResult:
    """Accumulate the gradient of the global batch over its micro-batches, then update once.

    batches: those of this rank, where ranks see different rows.

    The result does not depend on how the rows were split into `batches`, nor on how `passes` lays the
    model out, up to the rounding of sums.
    """
    directive = reach("train.step", step=step)
    counts, tokens = count(passes, objective, batches)
    coefficients = [torch.from_numpy(objective.coefficients(batch, counts)) for batch in batches]
    whole, loss = passes.gradients(batches, coefficients, z_loss, dropping)
    if directive == "nan":
        whole, loss = whole * math.nan, loss * math.nan
    norm = passes.clip(clip)
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
        tokens=tokens,
        updated=updated,
        rate=rate,
        z_loss=whole_value - loss_value,
    )


def count(passes: Passes, objective: Objective, batches: Sequence[Batch]) -> tuple[dict[str, float], int]:
    """The objective's counts over the global batch, and its valid targets."""
    mine = total(objective, batches)
    *values, tokens = passes.total([*mine.values(), float(sum(batch.num_valid for batch in batches))])
    return dict(zip(mine, values, strict=True)), int(tokens)
