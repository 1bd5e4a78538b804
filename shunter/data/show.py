"""Rows of a token folder as a person can check them: which text, what is learnt, where documents end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import IGNORE, TokenRows


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens that are all learnt (as targets), or all not."""

    text: str
    learnt: bool
    tokens: int


@dataclass
class Part:
    """One document, or what stands of it, in one row.

    before, after: tokens of the document outside this row. truncated: those after stand in no row.
    """

    document: str
    before: int
    after: int
    truncated: bool
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class Row:
    """A row: its parts in order, and the padding at its end."""

    number: int
    parts: list[Part]
    padding: int

    def data(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "row": self.number,
            "padding": self.padding,
            "parts": [
                {**vars(part), "pieces": [vars(piece) for piece in part.pieces]} for part in self.parts
            ],
        }


def show(rows: TokenRows, tokenizer: Tokenizer, number: int) -> Row:
    """One row. A token counts as learnt when it is the target of the one before it."""
    batch = rows.rows(np.asarray([number]))
    tokens, targets, segments = batch.tokens[0], batch.targets[0], batch.segments[0]
    truncates = rows.index["packer"] == "best_fit" and rows.index["overlong"]["choice"] == "truncate"
    names = rows.documents_of(number)
    spans = rows.spans[rows.first_span[number] : rows.first_span[number + 1]]
    parts, at = [], 0
    for name, (_, begin, length) in zip(names, spans.tolist(), strict=True):
        document = int(np.searchsorted(rows.borders, begin, side="right")) - 1
        first, last = int(rows.borders[document]), int(rows.borders[document + 1])
        after = last - begin - length
        part = Part(name, begin - first, after, truncated=bool(after) and truncates)
        here = tokens[at : at + length]
        # The first token of a part is learnt in the row before it, if at all.
        learnt = np.concatenate([[False], targets[at : at + length - 1] != IGNORE])
        cuts = [0, *(np.flatnonzero(learnt[1:] != learnt[:-1]) + 1).tolist(), length]
        for low, high in itertools.pairwise(cuts):
            part.pieces.append(Piece(tokenizer.decode(here[low:high]), bool(learnt[low]), high - low))
        parts.append(part)
        at += length
    return Row(number, parts, int((segments < 0).sum()))


@dataclass(frozen=True)
class Origin:
    """Where one token of a row comes from.

    token: its id; text: what it says. document: the id of its document; index: its place among the tokens of
    that, of which there are `of`. chars: [begin, end) in what the document's tokens say, marks aside; the two
    are equal for a mark and for a token that ends inside a character.
    """

    row: int
    place: int
    token: int
    text: str
    document: str
    index: int
    of: int
    chars: tuple[int, int]


def origin(rows: TokenRows, tokenizer: Tokenizer, row: int, place: int) -> Origin:
    """The origin of token `place` of a row, both from 0. Raises ShunterError for a place without a token."""
    if not (0 <= row < rows.num_rows and 0 <= place < rows.row_length):
        there = f"{rows.num_rows} rows have {rows.row_length} tokens each"
        raise ShunterError(f"there is no token {place} in row {row}: {there}", where=str(rows.folder))
    at = 0
    for name, span in zip(rows.documents_of(row), _spans(rows, row), strict=True):
        begin, length = span
        if place < at + length:
            here = begin + place - at
            document = int(np.searchsorted(rows.borders, here, side="right")) - 1
            first, last = int(rows.borders[document]), int(rows.borders[document + 1])
            low, high = (
                _whole(tokenizer.decode(rows.tokens[first:end].tolist(), skip_special=True))
                for end in (here, here + 1)
            )
            number = int(rows.tokens[here])
            text = tokenizer.decode([number])
            return Origin(row, place, number, text, name, here - first, last - first, (low, high))
        at += length
    raise ShunterError(f"token {place} of row {row} is padding", where=str(rows.folder))


def _spans(rows: TokenRows, row: int) -> list[tuple[int, int]]:
    """Begin among all tokens, and length, of each part of a row."""
    spans = rows.spans[rows.first_span[row] : rows.first_span[row + 1]]
    return [(begin, length) for _, begin, length in spans.tolist()]


def _whole(text: str) -> int:
    """Characters of a text, without what stands for half of one at its end."""
    return len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
