"""Which tokens of a row a rank holds: a chunk near the row's begin and one near its end.

Causal attention costs a token as much as stands before it. A row of T tokens is cut in 2 n chunks for n
ranks; rank r holds chunks r and 2 n - 1 - r, so that all have the same work (torchtitan calls it head-tail
balance; the ring of arXiv 2310.01889 without it leaves the early ranks idle).
"""

from __future__ import annotations

import torch
from torch import Tensor

from shunter.layout.context_traffic import chunk_length


def chunks(index: int, size: int) -> tuple[int, int]:
    """The two chunks of a rank, the earlier first."""
    return index, 2 * size - 1 - index


def spans(length: int, size: int, index: int) -> list[range]:
    """Positions of the row that a rank holds, in the order it holds them. One rank holds the row as it is."""
    if size == 1:
        return [range(length)]
    step = chunk_length(length, size)
    return [range(chunk * step, (chunk + 1) * step) for chunk in chunks(index, size)]


def zigzag(length: int, size: int) -> list[Tensor]:
    """For each rank the positions [length / size] of a row that it holds.

    Raises ShunterError where `length` does not split into 2 * size chunks; one rank takes any length.
    """
    return [
        torch.cat([torch.arange(span.start, span.stop) for span in spans(length, size, index)])
        for index in range(size)
    ]


def in_order(parts: Tensor, dim: int) -> Tensor:
    """From parts [n, ...] of n ranks, tokens at `dim` of a part, to rows with all tokens there."""
    pairs = parts.unflatten(dim + 1, (2, -1))  # [n, ..., 2, c, ...]
    early, late = pairs.select(dim + 1, 0), pairs.select(dim + 1, 1)
    rows = torch.cat([early, late.flip(0)])  # [2 n, ..., c, ...]
    return rows.movedim(0, dim).flatten(dim, dim + 1)


def in_parts(rows: Tensor, size: int, dim: int) -> Tensor:
    """The reverse of `in_order`: [size, ...] with each rank's tokens at `dim`; contiguous."""
    cut = rows.unflatten(dim, (2 * size, -1)).movedim(dim, 0)  # [2 n, ..., c, ...]
    early, late = cut[:size], cut[size:].flip(0)
    return torch.stack([early, late], dim=dim + 1).flatten(dim + 1, dim + 2)
