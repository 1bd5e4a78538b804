"""The head and cross-entropy in one, without keeping logits.

Logits of a chunk of tokens exist only while their log-probabilities and gradient are taken. Because
each token's coefficient in the loss is known beforehand, the gradient is taken in the forward pass:
no second product with the weight, as recomputation would need.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

ROUND = 128  # active tokens are filled up to a multiple of this
# Logits of a chunk. A GPU has no cache that holds them: there, few long loops are what is fast.
CHUNK_BYTES, GPU_CHUNK_BYTES = 1 << 23, 1 << 28
BLOCK_ELEMENTS = 1 << 20  # of those that the softmax takes at a time: 4 MiB, which stays in a CPU's cache


class Others(Protocol):
    """Whoever has the other rows of the vocabulary. Each call is one meeting, in place.

    begin: this part's first row in the whole. rows: of the largest part: all meet for equally many tokens.
    """

    begin: int
    rows: int

    def largest(self, values: Tensor) -> Tensor: ...

    def total(self, values: Tensor) -> Tensor: ...


def chunk_tokens(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens whose logits, of `rows` words of the vocabulary, exist at a time."""
    size = CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
    return max(64, size // dtype.itemsize // max(rows, 1))


def active_tokens(coefficients: Tensor) -> Tensor:
    """Indices of the tokens that have a coefficient, and of a few others.

    Tokens without one cost nothing: in instruction data most are such. Each new shape makes oneDNN build and
    keep a kernel, so some of them fill up.
    """
    active = coefficients.nonzero().flatten()
    if len(active) < len(coefficients) and (odd := len(active) % ROUND):
        spare = (coefficients == 0).nonzero().flatten()[: ROUND - odd]
        active = torch.cat([active, spare])
    return active


def _softmax(
    logits: Tensor,
    target: Tensor,
    coefficient: Tensor,
    z_loss: float,
    block: int,
    scratch: Tensor | None,
    others: Others | None,
) -> tuple[Tensor, Tensor]:
    """Normaliser [n] and log-probability of the target [n]; `logits` [n, V] become their gradient.

    coefficient [n] has the dtype to compute in. block: rows at a time, as many as stay in cache from one loop
    to the next; scratch [block, V]: where logits have another dtype. One exponential an element. target [n]:
    row of this part, or a negative number where the row is another's.
    """
    normalisers, picks = torch.empty_like(coefficient), torch.empty_like(coefficient)
    for begin in range(0, len(logits), block):
        rows = slice(begin, begin + block)
        part, at, factor = logits[rows], target[rows, None], coefficient[rows]
        wide = part if scratch is None else scratch[: len(part)].copy_(part)
        top = wide.amax(dim=-1)
        picked = wide.gather(1, at.clamp_min(0)).squeeze(1)
        aim = factor
        if others is not None:
            top = others.largest(top)
            own = (at >= 0).squeeze(1)
            picked, aim = picked * own, factor * own
        total = wide.sub_(top[:, None]).exp_().sum(dim=-1)
        if others is not None:
            total, picked = others.total(torch.stack([total, picked]))
        normaliser = top + total.log()
        scale = -factor
        if z_loss:
            scale = scale + 2 * z_loss * factor.abs() * normaliser
        wide.mul_((scale / total)[:, None]).scatter_add_(1, at.clamp_min(0), aim[:, None])
        if wide is not part:
            part.copy_(wide)
        normalisers[rows], picks[rows] = normaliser, picked - normaliser
    return normalisers, picks


def _score(logits: Tensor, target: Tensor, others: Others | None) -> tuple[Tensor, Tensor]:
    """Normaliser [n] and log-probability of the target [n], without a gradient; see `_softmax`."""
    picked = logits.gather(1, target[:, None].clamp_min(0)).squeeze(1)
    if others is None:
        normaliser = logits.logsumexp(dim=-1)
        return normaliser, picked - normaliser
    top = others.largest(logits.amax(dim=-1))
    total = (logits - top[:, None]).exp_().sum(dim=-1)
    total, picked = others.total(torch.stack([total, picked * (target >= 0)]))
    normaliser = top + total.log()
    return normaliser, picked - normaliser


def accumulate_outer(total: Tensor, grad: Tensor, hidden: Tensor, first: bool) -> None:
    """total [V, D] plus (or, at first, becomes) grad [n, V] transposed times hidden [n, D]."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), hidden, beta=0 if first else 1)
        return
    product = grad.t() @ hidden
    if first:
        total.copy_(product)
        return
    if total.device.type != "cpu":
        total.add_(product)
        return
    # A sum of two dtypes converts the whole of one beforehand: by parts, that stays in cache.
    size = max(1, (BLOCK_ELEMENTS // 4) // total.shape[1])
    for into, part in zip(total.split(size), product.split(size), strict=True):
        into.add_(part)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        z_loss: float,
        into_grad: bool,
        others: Others | None,
    ) -> tuple[Tensor, Tensor]:
        # The inputs' flags are the truth here: inside a Function grad mode is off.
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        wants = wants_hidden or wants_weight
        compute = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            compute = torch.get_autocast_dtype(hidden.device.type)
        used = weight.to(compute)
        count = hidden.shape[0]
        accumulate = torch.promote_types(compute, torch.float32)
        logprobs = torch.zeros(count, dtype=accumulate, device=hidden.device)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None  # a frozen weight has none, and costs no product
        fresh = True
        if wants_weight and into_grad and weight.grad is not None:
            grad_weight, fresh = weight.grad, False
        elif wants_weight:
            grad_weight = torch.empty_like(weight)
        active = active_tokens(coefficients)
        whole = len(active) == count
        chunk = chunk_tokens(weight.shape[0] if others is None else others.rows, compute, hidden.device)
        # A meeting for each chunk is enough: one for each block would wait too often.
        in_blocks = hidden.device.type == "cpu" and others is None
        block = max(16, BLOCK_ELEMENTS // weight.shape[0]) if in_blocks else chunk
        # One buffer for all chunks: fresh memory costs page faults, about what the exponentials cost.
        buffer = torch.empty(min(chunk, len(active)), weight.shape[0], dtype=compute, device=hidden.device)
        block = max(1, min(block, len(active)))
        scratch: Tensor | None = None
        if accumulate != compute and wants:
            scratch = torch.empty(block, weight.shape[0], dtype=accumulate, device=hidden.device)
        for begin in range(0, len(active), chunk):
            rows = slice(begin, min(begin + chunk, count)) if whole else active[begin : begin + chunk]
            h, target = hidden[rows].to(compute), targets[rows].clamp_min(0)
            if others is not None:
                target = target - others.begin
                target = torch.where(target < len(weight), target, -1)
            coefficient = coefficients[rows].to(accumulate)
            logits = torch.mm(h, used.t(), out=buffer[: len(h)])
            if not wants:
                normaliser, picked = _score(logits.to(accumulate), target, others)
            else:
                normaliser, picked = _softmax(logits, target, coefficient, z_loss, block, scratch, others)
            logprobs[rows] = torch.where(coefficient != 0, picked, 0.0)
            loss += (coefficient.double() * picked.double()).sum()
            if z_loss:
                loss += z_loss * (coefficient.abs().double() * normaliser.double().square()).sum()
            grad = logits  # overwritten, if anything wants it
            if grad_hidden is not None:
                grad_hidden[rows] = (grad @ used).to(hidden.dtype)
            if grad_weight is not None:
                accumulate_outer(grad_weight, grad, h, fresh and begin == 0)
        if grad_weight is not None and fresh and len(active) == 0:
            grad_weight.zero_()
        if into_grad:
            weight.grad, grad_weight = grad_weight, None
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(logprobs)
        return loss, logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        outer = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * outer.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * outer.to(grad_weight.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    *,
    z_loss: float = 0.0,
    into_grad: bool = False,
    others: Others | None = None,
) -> tuple[Tensor, Tensor]:
    """sum of coefficient x log softmax(hidden @ weight.T)[target], and the log-probabilities.

    hidden [N, D], weight [V, D], targets [N] (any negative value where the coefficient is 0),
    coefficients [N]: the derivative of the loss by each log-probability, so -1/count for the mean
    cross-entropy. z_loss adds z_loss x |coefficient| x logsumexp^2 (arXiv 2204.02311, section 5).
    into_grad: the weight's gradient goes to `weight.grad` at once, for a loss whose backward is surely called
    with 1: a micro-batch that waits for its backward then holds none of it. A leaf is needed for that.
    others: the weight is a part of the vocabulary's rows, the rest is theirs. They have the same hidden
    states, targets and coefficients, and get the same loss; each one's gradient of `hidden` is a part of it.
    Returns the loss (float64 scalar) and log-probabilities [N], 0 where the coefficient is 0; the
    latter carry no gradient.
    """
    if not torch.is_grad_enabled():  # a Function is not told of it, and would take the gradient for nothing
        hidden, weight = hidden.detach(), weight.detach()
    loss, logprobs = _LinearCrossEntropy.apply(
        hidden, weight, targets, coefficients, z_loss, into_grad and weight.requires_grad, others
    )
    return loss, logprobs
