"""Three sentences in a row that stand earlier in the corpus go (C4, arXiv 1910.10683, section 2.2).

A run of n sentences is a repeat exactly when each of its windows of three is one, so windows are compared, as
`RepeatedStretches` compares those of words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation.local import sentences, without
from shunter.data.curation.operators import Barrier, Keys, Verdicts
from shunter.data.curation.pages import Pages, Prefix, Spans, lowered, mixed
from shunter.data.curation.room import room_of
from shunter.data.curation.substrings import covered, repeated, windows


class RepeatedSpans(Barrier):
    """Keeps the first of equal runs of three sentences and removes the others; a document with few sentences
    left goes.

    Sentences are compared without case. A document that lost nothing stays however short it is. 9 bytes a
    sentence on disk, and 16 more while they are sorted if they do not fit in memory.
    """

    source: ClassVar[str] = "C4, arXiv 1910.10683, section 2.2; `min_sentences`: its code"

    kind: Literal["repeated-spans"] = Field(
        "repeated-spans", description="Exact duplicates of runs of sentences over the whole corpus."
    )
    sentences: int = Field(3, ge=1, description="Sentences in a row from which a run counts.")
    min_sentences: int = Field(5, ge=0, description="Documents that lost some and have fewer left go.")

    def keys(self, pages: Pages) -> Keys:
        spans = sentences(pages)
        starts, rows = self._windows(spans)
        prefix = Prefix(mixed(lowered(pages).of(spans.begins, spans.ends)))
        return {"rows": rows, "hashes": prefix.of(starts, starts + self.sentences)}

    def _windows(self, spans: Spans) -> tuple[np.ndarray, np.ndarray]:
        """int64: the first sentence of each window, and the number of windows of each document."""
        return windows(spans.first, self.sentences)

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """again: bool per window, whether an equal one stands earlier."""
        room = room_of(keys)
        rows = room.whole("rows", keys["rows"], np.int64)
        return {"rows": rows, "again": repeated(keys["hashes"], int(rows.sum()), room)}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        spans, size = sentences(pages), len(pages)
        starts, _ = self._windows(spans)
        gone = covered(len(spans), starts[settled["again"]], self.sentences)
        lost = spans.sums(gone)
        left = spans.counts - lost
        reason = np.where((lost > 0) & (left < self.min_sentences), 0, -1).astype(np.int16)
        texts: list[str] | None = None
        for number in np.flatnonzero((lost > 0) & (reason < 0)).tolist():
            texts = list(pages.texts) if texts is None else texts
            texts[number], _ = without(pages, spans, number, gone)
        counts = {"repeated sentences": int(lost[reason < 0].sum())} if texts is not None else {}
        limits = np.full(size, self.min_sentences, np.float64)
        return Verdicts(
            ["little but repeats"], reason, left.astype(np.float64), limits, texts=texts, counts=counts
        )
