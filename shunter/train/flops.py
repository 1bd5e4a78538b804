"""How many floating-point operations a step of training takes by the model's formula."""

from __future__ import annotations

import numpy as np

from shunter.data.tokens import Batch
from shunter.models.spec import DecoderSpec


def batch_flops(spec: DecoderSpec, batch: Batch) -> float:
    """FLOP of forward and backward over the batch: 2 a weight and token that meet, 4 a head's width and
    visible pair, times 3 (arXiv 2001.08361, section 2.1).

    Counted is what the result needs: tokens that are not padding, pairs inside a document and the
    sliding window, and the head where there is a target. A kernel that computes more is not faster by it.
    """
    tokens = int((batch.segments >= 0).sum())
    weights = spec.product_weights() * tokens + spec.vocab_size * spec.dim * batch.num_valid
    pairs = spec.num_layers * spec.num_heads * spec.head_dim * visible_pairs(batch, spec.sliding_window)
    return 3.0 * (2 * weights + 4 * pairs)


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
