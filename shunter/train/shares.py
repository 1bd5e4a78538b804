"""Which rows of a step are whose: those of a rank, and of its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from torch import Tensor, zeros_like

from shunter.data.noise import noised
from shunter.data.tokens import Batch
from shunter.layout.piece import balanced
from shunter.parallel.mesh import Peers


def split(ids: np.ndarray, parts: int) -> list[np.ndarray]:
    """A step's rows in `parts` micro-batches whose sizes differ by at most one, none empty."""
    assert len(ids) >= parts
    return [np.asarray(part) for part in np.array_split(ids, parts)]


def share(batch: Batch, coefficients: Tensor, data: Peers) -> tuple[Batch, Tensor]:
    """This rank's rows of a batch that all data ranks have; one without weight where there are too few."""
    begin, end = balanced(len(batch.row_ids), data.size, data.index)
    rows = slice(begin, end) if begin < end else slice(0, 1)
    part = Batch(*(array[rows] for array in vars(batch).values()))
    return part, coefficients[rows] if begin < end else zeros_like(coefficients[rows])


def noised_batches(
    batches: Sequence[Batch],
    share: float,
    vocabulary: int,
    stream: int,
    step: int,
    rows: int,
    data: Peers,
) -> list[Batch]:
    """This rank's micro-batches with `share` of their tokens replaced. A row's noise is its own, whatever the
    layout: rows are numbered within the step's `rows`."""
    mine = balanced(rows, data.size, data.index)[0]
    firsts = accumulate((len(batch.tokens) for batch in batches), initial=mine)
    return [
        noised(batch, share, vocabulary, stream, step, first)
        for batch, first in zip(batches, firsts, strict=False)
    ]
