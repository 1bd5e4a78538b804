"""Documents in one row do not see each other.

Short rows take a mask: CPU kernels then cost what plain causal attention costs. In long rows a mask
costs up to twice that, so their segments are gathered into batches of their own, padded on the right,
where plain causal attention is right for every real token; the padding's outputs are dropped. Work
then shrinks from T^2 to the sum of the segments' squares. On a GPU, in half precision, one kernel takes
the segments where they lie, by their edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shunter.models.dropout import Masks
from shunter.models.forks import Forks
from shunter.models.runs import beginnings
from shunter.models.uncompiled import uncompiled

# Longest row that takes a mask. On 2 cores, forward and backward: at 256 the mask is 2.5 times faster than
# gathering, at 1,024 as fast (float32) or 1.4 times faster (bfloat16), at 2,048 half as fast (float32).
MASK_UP_TO = 1024


@dataclass(frozen=True)
class SegmentPlan:
    """How to compute attention for one batch of rows [B, T].

    With no `mask`, `shapes`, `forks` or `whole`, each row is one segment (or one and padding after it): plain
    causal attention over rows.
    mask    [B, 1, T, T]: True where a token sees another one; causal, inside the segment.
    whole   who sees whom in whole rows, of which the tokens here are a part; for an attention that knows how
            to fetch the rest.
    With `shapes` instead, the segments are laid out in slots, bucket after bucket; bucket i has
    `shapes[i]` = (segments, slots each).
    take    [slots]: the flat token of each slot (padding slots: some token)
    outside [n]:     the padding slots
    back    [B * T]: the slot of each flat token (padding tokens: some slot)
    padding [m]:     the flat tokens that are padding
    real    [B, T]: True where a token is not padding; None: everywhere.
    edges   [n + 1] int32: the flat tokens where segments begin, padding's too, and B * T; on a GPU only.
    forks   where each row's answers and the prompt that they share stand, instead of `mask`.
    masks   what is dropped, while a model learns with dropout.
    """

    shapes: tuple[tuple[int, int], ...]
    take: Tensor | None = None
    outside: Tensor | None = None
    back: Tensor | None = None
    padding: Tensor | None = None
    mask: Tensor | None = None
    whole: Any = None
    real: Tensor | None = None
    edges: Tensor | None = None
    forks: Forks | None = None
    masks: Masks | None = None

    @classmethod
    def build(cls, segments: Tensor, mask_up_to: int = MASK_UP_TO) -> SegmentPlan:
        """From segments [B, T]: the segment's number in its row, -1 on padding."""
        rows, length = segments.shape
        flat = segments.cpu()
        filled = None if bool((flat >= 0).all()) else segments >= 0
        if bool((flat <= 0).all()) and bool((flat.diff(dim=1) <= 0).all()):
            return cls((), real=filled)
        starts = beginnings(flat)
        ends = torch.cat([starts[1:], torch.tensor([rows * length])])
        edges = None
        if segments.is_cuda:
            edges = torch.cat([starts, ends[-1:]]).to(segments.device, torch.int32)
        if length <= mask_up_to:
            # Padding sees padding: a query that saw nothing would be 0 / 0.
            same = segments[:, None, :, None] == segments[:, None, None, :]
            return cls((), mask=same.tril(), real=filled, edges=edges)
        real = flat.flatten()[starts] >= 0
        starts, lengths = starts[real], (ends - starts)[real]
        # Sizes double from bucket to bucket, so padding is at most half of a bucket (beyond 16 slots).
        sizes = torch.tensor([min(length, max(16, 1 << int(n - 1).bit_length())) for n in lengths.tolist()])
        shapes: list[tuple[int, int]] = []
        takes: list[Tensor] = []
        insides: list[Tensor] = []
        for size in sorted(set(sizes.tolist())):
            chosen = (sizes == size).nonzero().flatten()
            slots = torch.arange(size)
            inside = slots < lengths[chosen][:, None]
            takes.append((starts[chosen][:, None] + torch.where(inside, slots, 0)).flatten())
            insides.append(inside.flatten())
            shapes.append((len(chosen), size))
        take, inside = torch.cat(takes), torch.cat(insides)
        back = torch.zeros(rows * length, dtype=torch.int64)
        back[take[inside]] = inside.nonzero().flatten()
        parts = (take, (~inside).nonzero().flatten(), back, (flat.flatten() < 0).nonzero().flatten())
        take, outside, back, padding = (part.to(segments.device) for part in parts)
        return cls(tuple(shapes), take, outside, back, padding, real=filled, edges=edges)

    @classmethod
    def sharing(cls, segments: Tensor) -> SegmentPlan:
        """Every token sees those before it in its own segment and in the row's first one, which all share."""
        real = segments >= 0
        forks = Forks.build(segments)
        if forks is not None:
            return cls((), forks=forks, real=real)
        asks, seen = segments[:, None, :, None], segments[:, None, None, :]
        return cls((), mask=((asks == seen) | ((seen == 0) & (asks >= 0))).tril(), real=real)


class _Pick(torch.autograd.Function):
    """x[pick], with the inverse pick as its gradient: faster than scattering, and exact, because each
    real token stands in exactly one slot, and what padding would receive is set to zero."""

    @staticmethod
    def forward(ctx, x: Tensor, pick: Tensor, inverse: Tensor, zero: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inverse, zero)
        return x.index_select(0, pick)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        inverse, zero = ctx.saved_tensors
        return grad.index_select(0, inverse).index_fill_(0, zero, 0.0), None, None, None


def window_mask(length: int, window: int, device: torch.device) -> Tensor | None:
    """[T, T], True where a token sees another one: itself and the window - 1 before it. None when the
    window hides nothing beyond what causality does."""
    if length <= window:
        return None
    steps = torch.arange(length, device=device)
    gap = steps[:, None] - steps
    return (gap >= 0) & (gap < window)


@uncompiled
def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: SegmentPlan, window: int | None = None
) -> Tensor:
    """Causal attention inside each segment, to the last `window` tokens of it where one is given.

    q, k, v: [B, H, T, D] with equal H; returns [B, H, T, D].
    """
    rows, heads, length, width = q.shape
    flat = torch.cat([x.transpose(1, 2).reshape(rows * length, heads * width) for x in (q, k, v)], dim=1)
    slots = _Pick.apply(flat, plan.take, plan.back, plan.padding)
    outputs = []
    # Not slices: each one's gradient would be a zero tensor of all slots, to be added to the others'.
    parts = slots.split([count * size for count, size in plan.shapes])
    for (count, size), part in zip(plan.shapes, parts, strict=True):
        q, k, v = part.view(count, size, 3, heads, width).permute(2, 0, 3, 1, 4).unbind()
        mask = None if window is None else window_mask(size, window, q.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None
        )
        outputs.append(out.transpose(1, 2).reshape(count * size, heads * width))
    out = _Pick.apply(torch.cat(outputs), plan.back, plan.take, plan.outside)
    result: Tensor = out.view(rows, length, heads, width).transpose(1, 2)
    return result


def takes_edges(v: Tensor, plan: SegmentPlan) -> bool:
    """Whether the kernel that takes segments by their edges is there for values [B, H, T, D]."""
    half = v.dtype in (torch.bfloat16, torch.float16)
    return plan.edges is not None and half and v.shape[-1] % 8 == 0 and v.shape[-1] <= 256


def edged_attention(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, window: int | None = None) -> Tensor:
    """`segment_attention` by one kernel, FlashAttention's for rows of many lengths (arXiv 2307.08691).

    q, k, v: [B, H, T, D] with equal H, v in half precision, on a GPU; returns [B, H, T, D].
    """
    from torch.nn.attention.varlen import varlen_attn  # with it comes torch's compiler, which takes seconds

    rows, heads, length, width = q.shape
    q, k, v = (x.transpose(1, 2).reshape(rows * length, heads, width).to(v.dtype) for x in (q, k, v))
    # The row's length bounds every segment's; the longest itself would be another number in every batch,
    # for which a compiled model would be compiled again.
    back = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, edges, edges, length, length, window_size=(back, 0))
    assert isinstance(out, Tensor)  # a pair where more is asked for
    return out.view(rows, length, heads, width).transpose(1, 2)
