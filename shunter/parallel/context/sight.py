"""Who sees whom in a batch of rows, told tile by tile: no mask of a whole row is ever made.

A tile is a range of queries by a range of keys. Most are empty (nobody sees anybody) or full (everybody sees
everybody) and need no mask; the rest make theirs when they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Side of the tiles where documents or a window matter. Smaller ones skip more and start more kernels.
TILE = 256


@dataclass(frozen=True)
class Tile:
    """Queries `rows` by keys `columns`, both positions in the whole row, that are not empty.

    causal: the two ranges are the same one, and each token sees itself and those before it.
    masked: `Sight.mask` tells who sees whom. With neither, everybody sees everybody.
    """

    rows: range
    columns: range
    causal: bool = False
    masked: bool = False


class Sight:
    """A token sees itself and those before it, of its own document, at most the last `window` tokens.

    length:   T, tokens of a whole row
    segments: [B, T] the document's number in its row, -1 on padding (which sees padding alone); None: each
              row is one document
    window:   a token sees itself and the window - 1 before it; None: all

    Costs a wait for the device where segments are given; make one for a batch and use it in all layers.
    """

    def __init__(self, length: int, segments: Tensor | None = None, window: int | None = None) -> None:
        if segments is not None and segments.shape[1] != length:
            raise ValueError(f"segments are of {segments.shape[1]} tokens, the rows of {length}")
        if window is not None and window < 1:
            raise ValueError(f"a window of {window} tokens")
        self.length = length
        self.window = None if window is None or window >= length else window
        host = None if segments is None else segments.cpu()
        if host is None or bool((host == host[:, :1]).all()):
            self.segments = self._host = None
        else:
            self.segments, self._host = segments, host
        self._ranges: dict[range, list[tuple[int, int]]] = {}
        self._tiles: dict[tuple[range, range], list[Tile]] = {}

    @property
    def plain(self) -> bool:
        """Whether causality is all there is."""
        return self.segments is None and self.window is None

    def tiles(self, rows: range, columns: range) -> list[Tile]:
        """What there is to compute for some queries and keys. The tile that holds a query itself, if it is
        among them, comes before the others of that query: their softmax is never that of nothing."""
        found = self._tiles.get((rows, columns))
        if found is None:
            found = self._tiles[rows, columns] = list(self._cut(rows, columns))
        return found

    def sees(self, rows: range, columns: range) -> bool:
        """Whether any of the queries sees any of the keys."""
        return next(self._cut(rows, columns), None) is not None

    def mask(self, tile: Tile) -> Tensor:
        """[B or 1, 1, rows, columns]: True where a query sees a key; on the device of `segments`."""
        device = None if self.segments is None else self.segments.device
        at = torch.arange(tile.rows.start, tile.rows.stop, device=device)[:, None]
        gap = at - torch.arange(tile.columns.start, tile.columns.stop, device=device)
        seen = gap >= 0
        if self.window is not None:
            seen &= gap < self.window
        if self.segments is None:
            return seen[None, None]
        mine = self.segments[:, tile.rows.start : tile.rows.stop, None]
        return (seen & (mine == self.segments[:, None, tile.columns.start : tile.columns.stop]))[:, None]

    def _cut(self, rows: range, columns: range) -> Iterator[Tile]:
        """Tiles of the rows from first to last, and of each from the diagonal to the left."""
        if columns.start >= rows.stop:
            return
        if self.plain and columns.stop <= rows.start:
            yield Tile(rows, columns)
            return
        if self.plain and rows == columns:
            yield Tile(rows, columns, causal=True)
            return
        for band in _pieces(rows):
            full: range | None = None  # full tiles side by side become one
            for piece in reversed(_pieces(columns)):
                tile = self._judge(band, piece)
                if tile is not None and not (tile.causal or tile.masked):
                    full = range(piece.start, full.stop if full else piece.stop)
                    continue
                if full is not None:
                    yield Tile(band, full)
                    full = None
                if tile is not None:
                    yield tile
            if full is not None:
                yield Tile(band, full)

    def _judge(self, rows: range, columns: range) -> Tile | None:
        """The tile, or None if it is empty. A tile may be taken for a masked one though its mask is empty or
        full, never the other way round."""
        nearest, farthest = rows.start - columns[-1], rows[-1] - columns.start
        if farthest < 0 or (self.window is not None and nearest >= self.window):
            return None
        whole = self.window is None or farthest < self.window
        if self._host is not None:
            pairs = list(zip(self._extent(rows), self._extent(columns), strict=True))
            if all(mine[1] < other[0] or other[1] < mine[0] for mine, other in pairs):
                return None
            whole = whole and all(mine == other and mine[0] == mine[1] for mine, other in pairs)
        causal = whole and rows == columns
        return Tile(rows, columns, causal=causal, masked=not causal and not (whole and nearest >= 0))

    def _extent(self, part: range) -> list[tuple[int, int]]:
        """Of each row the least and the largest segment number in a range."""
        found = self._ranges.get(part)
        if found is None:
            assert self._host is not None
            low, high = torch.aminmax(self._host[:, part.start : part.stop], dim=1)
            found = self._ranges[part] = list(zip(low.tolist(), high.tolist(), strict=True))
        return found


def _pieces(part: range) -> list[range]:
    """A range cut at its own multiples of TILE."""
    return [range(begin, min(begin + TILE, part.stop)) for begin in range(part.start, part.stop, TILE)]
