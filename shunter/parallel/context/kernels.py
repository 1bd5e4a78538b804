"""Attention of one tile with its log-sum-exp, and its gradient once the whole row's log-sum-exp is known.

`F.scaled_dot_product_attention` does not tell the log-sum-exp, so the operators behind it are called: private
names of torch 2.13 (`shunter.private`). Where none serves, `by_hand` computes the same.

Shapes: q [B, H, r, d], k and v [B, K, c, d] with H a multiple of K, mask [B or 1, 1, r, c] (True: sees).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shunter import private

_CPU = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CUDA = (torch.bfloat16, torch.float16)
ROWS = 512  # queries at a time that `by_hand` makes probabilities for


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output [B, H, r, d] and log-sum-exp [B, H, r] (float32 at least; -inf where a query sees no key).

    causal: r = c, and each query sees the keys up to its own place. Not together with a mask.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    kind = _kernel(q, mask)
    if kind == "cpu":
        bias = _bias(q, mask)
        out, lse = private.flash_attention_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        # The operator tells 0 for the log-sum-exp of nothing.
        return out, lse if mask is None else lse.masked_fill(~mask.any(dim=-1), -math.inf)
    if kind == "cuda":
        out, lse, *_ = private.flash_attention_cuda(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse
    return by_hand(q, k, v, causal, mask)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a tile adds to the gradients of q, k and v.

    grad, out, lse: of the queries over all keys that they see, not those of this tile alone: then the tile's
    share of the softmax is exp(score - lse), and no correction is due afterwards.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    kind = _kernel(q, mask)
    if kind == "cpu":
        return private.flash_attention_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=_bias(q, mask), scale=scale
        )
    if kind == "cuda":
        # The state of random numbers is not read where nothing is dropped.
        state = torch.empty(2, dtype=torch.uint64, device=q.device)
        none = torch.empty((), dtype=torch.uint64, device=q.device)
        rows, columns = q.shape[2], k.shape[2]
        # It reads the log-sum-exp without regard to strides.
        lse = lse.contiguous()
        return private.flash_attention_cuda_backward(
            grad, q, k, v, out, lse, None, None, rows, columns, 0.0, causal, state, none, scale=scale
        )
    return by_hand_backward(grad, q, k, v, out, lse, causal, mask)


def _kernel(q: Tensor, mask: Tensor | None) -> str:
    """Which operator serves: "cpu", "cuda", or "hand" for none."""
    if q.device.type == "cpu" and q.dtype in _CPU:
        return "cpu"
    # Flash attention on CUDA takes no mask, needs compute capability 8, and other widths would be padded.
    if q.device.type == "cuda" and q.dtype in _CUDA and mask is None:
        width, able = q.shape[-1], torch.cuda.get_device_capability(q.device) >= (8, 0)
        return "cuda" if able and width % 8 == 0 and width <= 256 else "hand"
    return "hand"


def _bias(q: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask as the CPU operator takes it: added to the scores, in the dtype of q."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)


def by_hand(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `forward`, with plain products, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    values = v.to(wide).repeat_interleave(group, dim=1)
    outs, sums = [], []
    for begin in range(0, q.shape[2], ROWS):
        scores = _scores(q, k, causal, mask, begin)
        lse = scores.logsumexp(dim=-1)
        outs.append((_softmax(scores, lse) @ values).to(q.dtype))
        sums.append(lse)
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)


def by_hand_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `backward`, with plain products, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group, scale = q.shape[1] // k.shape[1], 1 / math.sqrt(q.shape[-1])
    keys, values = (x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
    back_k, back_v = torch.zeros_like(keys), torch.zeros_like(values)
    back_q = torch.empty_like(q, dtype=wide)
    delta = (grad.to(wide) * out.to(wide)).sum(dim=-1, keepdim=True)
    for begin in range(0, q.shape[2], ROWS):
        piece = slice(begin, begin + ROWS)
        share = _softmax(_scores(q, k, causal, mask, begin), lse[:, :, piece])
        above = grad[:, :, piece].to(wide)
        back_v += share.transpose(-1, -2) @ above
        back = share * (above @ values.transpose(-1, -2) - delta[:, :, piece]) * scale
        back_q[:, :, piece] = back @ keys
        back_k += back.transpose(-1, -2) @ q[:, :, piece].to(wide)
    back_k, back_v = (x.unflatten(1, (-1, group)).sum(dim=2) for x in (back_k, back_v))
    return back_q.to(q.dtype), back_k.to(k.dtype), back_v.to(v.dtype)


def _scores(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None, begin: int) -> Tensor:
    """[B, H, ROWS, c] of the queries from `begin` on; -inf where a query does not see a key."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    rows = q[:, :, begin : begin + ROWS].to(wide) / math.sqrt(q.shape[-1])
    scores = rows @ k.to(wide).repeat_interleave(group, dim=1).transpose(-1, -2)
    if causal:
        at = torch.arange(begin, begin + rows.shape[2], device=q.device)[:, None]
        scores = scores.masked_fill(at < torch.arange(k.shape[2], device=q.device), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, begin : begin + ROWS], -math.inf)
    return scores


def _softmax(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse); zeros where nothing is seen, though both are -inf there."""
    return (scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None]).exp()
