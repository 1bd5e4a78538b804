"""The head and cross-entropy in one, without keeping logits.

Logits of a chunk of tokens exist only while their log-probabilities and gradient are taken. Because
each token's coefficient in the loss is known beforehand, the gradient is taken in the forward pass:
no second product with the weight, as recomputation would need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUND = 128  # active tokens are filled up to a multiple of this
CHUNK_ELEMENTS = 1 << 22  # logits of a chunk: 16 MiB in float32, which stays in cache


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        # The inputs' flags are the truth here: inside a Function grad mode is off.
        wants = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        compute = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            compute = torch.get_autocast_dtype(hidden.device.type)
        used = weight.to(compute)
        count = hidden.shape[0]
        accumulate = torch.promote_types(compute, torch.float32)
        logprobs = torch.zeros(count, dtype=accumulate, device=hidden.device)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if wants else None
        grad_weight = torch.zeros_like(weight) if wants else None
        # Tokens without a coefficient cost nothing: in instruction data most are such.
        active = coefficients.nonzero().flatten()
        whole = len(active) == count
        if not whole and (odd := len(active) % ROUND):
            # Each new shape makes oneDNN build and keep a kernel: a token without a coefficient fills up.
            spare = (coefficients == 0).nonzero().flatten()[: ROUND - odd]
            active = torch.cat([active, spare])
        chunk = max(64, CHUNK_ELEMENTS // weight.shape[0])
        for begin in range(0, len(active), chunk):
            rows = slice(begin, min(begin + chunk, count)) if whole else active[begin : begin + chunk]
            h, target = hidden[rows].to(compute), targets[rows].clamp_min(0)
            coefficient = coefficients[rows].to(accumulate)
            logits = (h @ used.t()).to(accumulate)
            normaliser = logits.logsumexp(dim=-1)
            picked = logits.gather(1, target[:, None]).squeeze(1) - normaliser
            logprobs[rows] = torch.where(coefficient != 0, picked, 0.0)
            loss += (coefficient.double() * picked.double()).sum()
            if z_loss:
                loss += z_loss * (coefficient.abs().double() * normaliser.double().square()).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            scale = -coefficient
            if z_loss:
                scale = scale + 2 * z_loss * coefficient.abs() * normaliser
            grad = logits.sub_(normaliser[:, None]).exp_().mul_(scale[:, None])
            grad.scatter_add_(1, target[:, None], coefficient[:, None])
            grad = grad.to(compute)
            grad_hidden[rows] = (grad @ used).to(hidden.dtype)
            grad_weight += grad.t() @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(logprobs)
        return loss, logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        outer = grads[0]
        return (
            grad_hidden * outer.to(grad_hidden.dtype),
            grad_weight * outer.to(grad_weight.dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor, *, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """sum of coefficient x log softmax(hidden @ weight.T)[target], and the log-probabilities.

    hidden [N, D], weight [V, D], targets [N] (any negative value where the coefficient is 0),
    coefficients [N]: the derivative of the loss by each log-probability, so -1/count for the mean
    cross-entropy. z_loss adds z_loss x |coefficient| x logsumexp^2 (arXiv 2204.02311, section 5).
    Returns the loss (float64 scalar) and log-probabilities [N], 0 where the coefficient is 0; the
    latter carry no gradient.
    """
    loss, logprobs = _LinearCrossEntropy.apply(hidden, weight, targets, coefficients, z_loss)
    return loss, logprobs
