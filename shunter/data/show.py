"""Rows of a token folder as a person can check them: which text, what is learnt, where documents end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
