"""From examples of any length to rows of one length. Everything is spans: nothing is copied."""

from __future__ import annotations

import bisect
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# A span is (row, begin, length): `length` tokens of the token file from `begin` on stand in `row`,
# after the spans before it. Spans are sorted by row.
Spans = NDArray[np.int64]

Overlong = Literal["split", "truncate", "error"]


def concat(lengths: NDArray[np.int64], row_length: int) -> Spans:
    """Fill rows in order; a document longer than the rest of its row goes on in the next.

    No token is left out, and only the last row has padding. The next token of a document is a target
    also across the row's end, so no target is lost either.
    """
    ends = np.cumsum(lengths)
    size = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(np.concatenate([[0], ends]), np.arange(0, size + row_length, row_length))
    cuts = cuts[cuts <= size].astype(np.int64)
    begins, stops = cuts[:-1], cuts[1:]
    return np.stack([begins // row_length, begins, stops - begins], axis=1)


def best_fit(lengths: NDArray[np.int64], row_length: int, overlong: Overlong) -> tuple[Spans, int]:
    """Whole examples, each in the fullest row that still has room (best-fit decreasing).

    An example longer than a row is split over rows, or loses its tail, by `overlong`; returns the
    number of those too. Rows are numbered by their first example, so the order does not follow length.
    """
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.zeros(0, np.int64)
    parts: list[tuple[int, int]] = []
    long = 0
    for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
        if length > row_length:
            long += 1
            if overlong == "truncate":
                length = row_length
        while length > 0:
            parts.append((begin, min(length, row_length)))
            begin, length = begin + row_length, length - row_length
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(parts)), key=lambda i: (-parts[i][1], i)):
        length = parts[index][1]
        at = bisect.bisect_left(open_rows, (length, -1))
        if at == len(open_rows):
            room, row = row_length, len(rows)
            rows.append([])
        else:
            room, row = open_rows.pop(at)
        rows[row].append(index)
        if room - length > 0:
            bisect.insort(open_rows, (room - length, row))
    ordered = sorted(sorted(row) for row in rows)
    spans = [(number, *parts[i]) for number, row in enumerate(ordered) for i in row]
    return np.asarray(spans, dtype=np.int64).reshape(-1, 3), long
