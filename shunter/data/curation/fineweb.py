"""FineWeb's own filter (Penedo et al. 2024, arXiv 2406.17557, section 3.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation import glyphs
from shunter.data.curation.operators import Filter, Rule, ratio
from shunter.data.curation.pages import Pages
from shunter.data.curation.repeats import duplicates


class FineWebQuality(Filter):
    """Drops documents that are lists rather than prose.

    `max_repeated` is that of the released code (datatrove 0.10.1, FineWebQualityFilter: 0.01), where the
    paper's text says 0.1.
    """

    source: ClassVar[str] = "FineWeb, arXiv 2406.17557, section 3.6"

    kind: Literal["fineweb-quality"] = Field("fineweb-quality", description="FineWeb's rules of quality.")
    min_ended: float | None = Field(
        0.12, ge=0, le=1, description="Smallest share of lines that end a sentence."
    )
    max_short: float | None = Field(0.67, ge=0, le=1, description="Largest share of short lines.")
    short: int = Field(30, ge=0, description="Characters of the longest short line.")
    max_repeated: float | None = Field(
        0.01, ge=0, le=1, description="Largest share of characters in lines that are repeats."
    )
    max_feeds: float | None = Field(0.3, ge=0, description="Most line feeds a word.")

    def rules(self) -> Sequence[Rule]:
        return [
            Rule("no text", "lines", low=1),
            Rule("lines do not end sentences", "ended", low=self.min_ended),
            Rule("short lines", "short", high=self.max_short),
            Rule("characters in repeated lines", "repeated", high=self.max_repeated),
            Rule("line feeds", "feeds", high=self.max_feeds),
        ]

    def measures(self, pages: Pages, exact: bool = False) -> Mapping[str, np.ndarray]:
        lines = pages.lines
        filled = ~lines.blank
        number = lines.sums(filled)
        ended = filled & ((pages.flags[lines.ends - 1] & glyphs.TERMINAL) != 0)
        feeds = lines.counts - 1
        _, repeated = duplicates(lines, filled)
        return {
            "lines": number,
            "ended": ratio(lines.sums(ended), number),
            "short": ratio(lines.sums(filled & (lines.lengths <= self.short)), number),
            "repeated": ratio(repeated, pages.lengths - feeds),
            "feeds": ratio(feeds, pages.words.counts),
        }
