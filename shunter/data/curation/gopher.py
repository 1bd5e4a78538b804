"""The filters of Gopher (Rae et al. 2021, arXiv 2112.11446, section A.1.1 and table A1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.data.curation import glyphs
from shunter.data.curation.operators import Facts, Filter, Rule, Verdicts, decide, ratio
from shunter.data.curation.pages import Pages, Words
from shunter.data.curation.repeats import Grams, duplicates

Size = Annotated[int, Field(ge=1)]  # words in a run
STOPWORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherQuality(Filter):
    """Drops documents whose words and lines are not those of prose."""

    source: ClassVar[str] = "Gopher, arXiv 2112.11446, section A.1.1"

    kind: Literal["gopher-quality"] = Field("gopher-quality", description="Gopher's rules of quality.")
    min_words: int | None = Field(50, ge=0, description="Fewest words that are not symbols alone.")
    max_words: int | None = Field(100_000, ge=1, description="Most words that are not symbols alone.")
    min_mean_word: float | None = Field(3, ge=0, description="Least mean length of words, in characters.")
    max_mean_word: float | None = Field(10, ge=0, description="Greatest mean length of words, in characters.")
    max_symbols: float | None = Field(
        0.1, ge=0, description="Most hash signs a word, and most ellipses a word."
    )
    max_bullets: float | None = Field(
        0.9, ge=0, le=1, description="Largest share of lines that begin with a bullet."
    )
    max_ellipses: float | None = Field(
        0.3, ge=0, le=1, description="Largest share of lines that end with an ellipsis."
    )
    min_letters: float | None = Field(
        0.8, ge=0, le=1, description="Smallest share of words that have a letter."
    )
    min_stopwords: int | None = Field(2, ge=0, description="Fewest different stopwords.")
    stopwords: list[str] = Field(list(STOPWORDS), description="The stopwords; case counts.")

    stopwords_by_language: dict[str, list[str]] = Field(
        {}, description="Language -> its stopwords, in place of `stopwords`. A `limits` job makes it."
    )

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        if not self.stopwords_by_language or "language" not in facts:
            return super().judge_with(pages, facts)
        rules, languages = self.rules(), facts["language"]
        measures = dict(self.measures(pages))
        for name in set(languages.tolist()) & self.stopwords_by_language.keys():
            own = different(pages.words, self.stopwords_by_language[name])
            measures["stopwords"] = np.where(languages == name, own, measures["stopwords"])
        return decide(rules, measures, len(pages), self._bounds(rules, facts))

    def rules(self) -> Sequence[Rule]:
        return [
            Rule("too few words", "words", low=self.min_words),
            Rule("too many words", "words", high=self.max_words),
            Rule("short words", "mean word", low=self.min_mean_word),
            Rule("long words", "mean word", high=self.max_mean_word),
            Rule("hash signs", "hashes", high=self.max_symbols),
            Rule("ellipses", "ellipses", high=self.max_symbols),
            Rule("bullets", "bullets", high=self.max_bullets),
            Rule("lines end in ellipses", "ellipsis lines", high=self.max_ellipses),
            Rule("words without letters", "letters", low=self.min_letters),
            Rule("too few stopwords", "stopwords", low=self.min_stopwords),
        ]

    def measures(self, pages: Pages, exact: bool = False) -> Mapping[str, np.ndarray]:
        words, lines, codes = pages.words, pages.lines, pages.codes
        solid = (words.kinds & glyphs.SOLID) != 0
        number = words.sums(solid)
        dots = codes[words.begins] == 0x2E
        ellipses = words.sums(np.where(dots, words.lengths // 3, 0)) + pages.count("…")
        first, last = lines.edges
        filled = first >= 0
        starts = codes[first]
        bullets = filled & ((starts == 0x2022) | (starts == 0x2D))
        trailing = filled & ((codes[last] == 0x2026) | lines.dotted)
        # A line feed at the very end begins no further line.
        count = lines.counts - (codes[pages.ends - 1] == 10)
        return {
            "words": number,
            "mean word": ratio(words.sums(np.where(solid, words.lengths, 0)), number),
            "hashes": ratio(pages.count("#"), words.counts),
            "ellipses": ratio(ellipses, words.counts),
            "bullets": ratio(lines.sums(bullets), count),
            "ellipsis lines": ratio(lines.sums(trailing), count),
            "letters": ratio(words.sums((words.kinds & glyphs.ALPHA) != 0), words.counts),
            "stopwords": different(words, self.stopwords),
        }


class GopherRepetition(Filter):
    """Drops documents that repeat lines, paragraphs or runs of words."""

    source: ClassVar[str] = "Gopher, arXiv 2112.11446, table A1"

    kind: Literal["gopher-repetition"] = Field(
        "gopher-repetition", description="Gopher's rules of repetition."
    )
    max_lines: float | None = Field(0.3, ge=0, le=1, description="Largest share of lines that are repeats.")
    max_paragraphs: float | None = Field(
        0.3, ge=0, le=1, description="Largest share of paragraphs that are repeats."
    )
    max_line_chars: float | None = Field(
        0.2, ge=0, le=1, description="Largest share of characters in lines that are repeats."
    )
    max_paragraph_chars: float | None = Field(
        0.2, ge=0, le=1, description="Largest share of characters in paragraphs that are repeats."
    )
    top: dict[Size, float] = Field(
        {2: 0.2, 3: 0.18, 4: 0.16},
        description="Words in a run: largest share of characters in the run that is most frequent.",
    )
    repeated: dict[Size, float] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="Words in a run: largest share of characters in runs that stand earlier too.",
    )

    def rules(self) -> Sequence[Rule]:
        return [
            Rule("repeated paragraphs", "paragraphs", high=self.max_paragraphs),
            Rule("characters in repeated paragraphs", "paragraph chars", high=self.max_paragraph_chars),
            Rule("repeated lines", "lines", high=self.max_lines),
            Rule("characters in repeated lines", "line chars", high=self.max_line_chars),
            *(Rule(f"one run of {n} words", f"top {n}", high=self.top[n]) for n in sorted(self.top)),
            *(
                Rule(f"repeated runs of {n} words", f"runs of {n}", high=self.repeated[n])
                for n in sorted(self.repeated)
            ),
        ]

    def measures(self, pages: Pages, exact: bool = False) -> Mapping[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        lines, letters = pages.lines, pages.lengths
        filled = lines.ends > lines.begins
        if self.max_lines is not None or self.max_line_chars is not None:
            number, characters = duplicates(lines, filled)
            found["lines"] = ratio(number, lines.sums(filled))
            found["line chars"] = ratio(characters, letters)
        if self.max_paragraphs is not None or self.max_paragraph_chars is not None:
            parts = pages.paragraphs
            number, characters = duplicates(parts)
            found["paragraphs"] = ratio(number, parts.counts)
            found["paragraph chars"] = ratio(characters, letters)
        grams = Grams(pages.words)
        for size in sorted({*self.top, *self.repeated}):
            groups = grams.repeated(size)
            if size in self.top:
                found[f"top {size}"] = ratio(grams.top(size, groups), letters)
            if size in self.repeated:
                limit = letters * (0 if exact else self.repeated[size])
                found[f"runs of {size}"] = ratio(grams.covered(size, groups, limit), letters)
        return found


def different(words: Words, wanted: Sequence[str]) -> np.ndarray:
    """int64 per document: how many of the wanted words stand in it."""
    if not wanted or not len(words):
        return np.zeros(len(words.pages), np.int64)
    names = np.sort(Pages(list(dict.fromkeys(wanted))).hashes_whole)
    at = np.searchsorted(names, words.hashes)
    at[at == len(names)] = 0
    hits = np.flatnonzero(names[at] == words.hashes)
    seen = np.zeros((len(words.pages), len(names)), bool)
    seen[words.document[hits], at[hits]] = True
    return np.asarray(seen.sum(axis=1))
