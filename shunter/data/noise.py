"""Random tokens in the place of some: a cheap guard against overfitting where text is little."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from shunter.config.seed import derive_seed
from shunter.data.tokens import Batch


def noised(batch: Batch, share: float, vocabulary: int, seed: int, step: int, first: int) -> Batch:
    """The batch with `share` of its input tokens redrawn from the vocabulary; targets stay.

    Row i is the row `first` + i of the step, and its draws are keyed by (seed, step, first + i): they are the
    same however the step is cut into micro-batches or laid out over processes. Zeroing inputs at random is
    the word dropout of arXiv 1511.06349; a byte-level vocabulary has no token that means nothing, so a token
    drawn from all takes its place.
    """
    tokens: NDArray[np.int64] = batch.tokens.copy()
    for number, row in enumerate(tokens, first):
        draw = np.random.Generator(np.random.Philox(derive_seed(seed, "noise", step, number)))
        chosen = draw.random(len(row)) < share
        row[chosen] = draw.integers(vocabulary, size=len(row))[chosen]
    return dataclasses.replace(batch, tokens=tokens)
