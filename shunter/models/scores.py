"""Log-probabilities and entropies of tokens, differentiable, without keeping logits.

The head in `head.py` takes its gradient in the forward pass, because each token's coefficient is known
beforehand. Here it is not: a loss of a ratio or of a pair of answers has a derivative that depends on the
log-probabilities themselves. So the backward pass computes the logits of a chunk once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shunter.models.head import Others, accumulate_outer, chunk_tokens


class _LinearScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        entropies: bool,
        others: Others | None,
    ) -> tuple[Tensor, Tensor]:
        compute = _compute(hidden)
        wide = torch.promote_types(compute, torch.float32)
        used = weight.to(compute)
        logprobs = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        normalisers, entropy = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        for rows in _chunks(hidden, weight, others):
            logits = (hidden[rows].to(compute) @ used.t()).to(wide) / temperature
            if others is not None:
                found = _with_others(logits, targets[rows], entropies, others)
                normalisers[rows], logprobs[rows], entropy[rows] = found
                continue
            normaliser = logits.logsumexp(dim=-1)
            logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normaliser
            normalisers[rows] = normaliser
            if entropies:
                shares = (logits - normaliser[:, None]).exp_()
                entropy[rows] = normaliser - (shares * logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, targets, normalisers, entropy)
        ctx.temperature, ctx.entropies, ctx.compute, ctx.others = temperature, entropies, compute, others
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers, entropy = ctx.saved_tensors
        of_logprob, of_entropy = grads
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        compute, wide = ctx.compute, normalisers.dtype
        used = weight.to(compute)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for rows in _chunks(hidden, weight, ctx.others):
            h = hidden[rows].to(compute)
            known = ((h @ used.t()).to(wide) / ctx.temperature).sub_(normalisers[rows, None])
            shares = known.exp()
            grad = shares * -of_logprob[rows, None]
            if ctx.entropies:
                # dH/dz = -p (log p + H)
                grad -= of_entropy[rows, None] * shares * (known + entropy[rows, None])
            at, own = _own(targets[rows], len(weight), ctx.others)
            grad.scatter_add_(1, at[:, None], (of_logprob[rows] * own)[:, None].to(wide))
            narrow = (grad / ctx.temperature).to(compute)
            if grad_hidden is not None:
                grad_hidden[rows] = (narrow @ used).to(hidden.dtype)
            if grad_weight is not None:
                accumulate_outer(grad_weight, narrow, h, first=False)
        return grad_hidden, grad_weight, None, None, None, None


def _own(targets: Tensor, rows: int, others: Others | None) -> tuple[Tensor, Tensor | int]:
    """Which row of the weight a target is [n], and whether it is one: else another part has it."""
    if others is None:
        return targets, 1
    at = targets - others.begin
    return at.clamp(0, rows - 1), (at >= 0) & (at < rows)


def _with_others(
    logits: Tensor, targets: Tensor, entropies: bool, others: Others
) -> tuple[Tensor, Tensor, Tensor]:
    """Normaliser, log-probability and entropy [n] from this part's logits [n, v]; two meetings."""
    at, own = _own(targets, logits.shape[1], others)
    picked = logits.gather(1, at[:, None]).squeeze(1) * own
    top = others.largest(logits.amax(dim=-1))
    shares = (logits - top[:, None]).exp_()
    weighted = (shares * logits).sum(dim=-1) if entropies else torch.zeros_like(top)
    total, picked, weighted = others.total(torch.stack([shares.sum(dim=-1), picked, weighted]))
    normaliser = top + total.log()
    entropy = normaliser - weighted / total if entropies else weighted
    return normaliser, picked - normaliser, entropy


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    others: Others | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature)[target] [N], and the entropies [N] of that distribution.

    hidden [N, D], weight [V, D], targets [N]. Both are in nats and carry gradients; entropies are 0 unless
    asked for. others: the weight is a part of the vocabulary's rows, the rest is theirs. They have the same
    hidden states and targets, and get the same scores; each one's gradient of `hidden` is a part of it.
    """
    found: tuple[Tensor, Tensor] = _LinearScores.apply(
        hidden, weight, targets, temperature, entropies, others
    )
    return found


def _compute(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks(hidden: Tensor, weight: Tensor, others: Others | None) -> list[slice]:
    size = chunk_tokens(len(weight) if others is None else others.rows, hidden.dtype, hidden.device)
    return [slice(begin, begin + size) for begin in range(0, len(hidden), size)]
