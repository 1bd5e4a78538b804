"""How many floating-point operations a step of training takes by the model's formula."""

from __future__ import annotations

import numpy as np
from torch import nn

from shunter.data.tokens import Batch
from shunter.models.spec import DecoderSpec


def trained_share(model: nn.Module) -> float:
    """The share of a model's matrices, by elements, that take a gradient of their own."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters() if p.ndim >= 2]
    return sum(size for size, trained in sizes if trained) / max(sum(size for size, _ in sizes), 1)


def batch_flops(spec: DecoderSpec, batch: Batch, trained: float = 1.0) -> float:
    """FLOP of forward and backward over the batch: 2 a weight and token that meet, 4 a head's width and
    visible pair, times 3 (arXiv 2001.08361, section 2.1).

    Counted is what the result needs: tokens that are not padding, pairs inside a document and the
    sliding window, and the head where there is a target. A kernel that computes more is not faster by it.

    trained: share of the weights that take a gradient of their own: frozen ones need two products, not three.
    Low-rank adapters beside them are not counted: they are some percent at most.
    """
    tokens = int((batch.segments >= 0).sum())
    weights = spec.product_weights() * tokens + spec.vocab_size * spec.dim * batch.num_valid
    pairs = spec.num_layers * spec.num_heads * spec.head_dim * visible_pairs(batch, spec.sliding_window)
    return (2.0 + trained) * 2 * weights + 3.0 * 4 * pairs


def visible_pairs(batch: Batch, window: int | None) -> int:
    """Pairs (token, token that it sees): itself and those before it in its segment and the window."""
    segments = batch.segments
    columns = np.arange(segments.shape[1])
    starts = np.ones(segments.shape, dtype=bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    begins = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    seen = columns - begins + 1
    if window is not None:
        seen = np.minimum(seen, window)
    return int(seen[segments >= 0].sum())
