"""Arrays over a batch decide as plain loops over documents do.

What this cannot show: that the rules are those of the papers. `bench/curate.py` compares decisions with
datatrove's classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import glyphs
from shunter.data.curation.c4 import C4Quality
from shunter.data.curation.fineweb import FineWebQuality
from shunter.data.curation.gopher import STOPWORDS, GopherQuality, GopherRepetition
from shunter.data.curation.operators import Filter, Operator
from shunter.data.curation.pages import Pages
from tests.data.curation import reference

# Few pieces, so that lines and runs repeat and every rule is met on both sides of its limit.
PIECES = [
    "the", "of", "and", "house", "Über", "naïve", "don't", "3.14", "1,000", "x", "_y", "-", "•", "...", "…",
    "#", ".",
    "?", '."', "'", "\u2019", "{", "[12]", "[edit]", "你好", "กา", "हिन्दी", "a\u0301", "lorem ipsum",
    "JavaScript", "We use cookies.", "Ends here.", "\t", "\n", "\n", "\n\n", "\u2028", "\ud800",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).flatmap(
    lambda parts: st.sampled_from([" ".join(parts), "".join(parts), " ".join(parts * 3)])
)
BATCHES = st.lists(TEXTS.filter(lambda text: text.strip("\n") != ""), min_size=1, max_size=6)


@given(st.lists(TEXTS | st.text(), min_size=1, max_size=6))
@settings(max_examples=60)
def test_words(texts: list[str]) -> None:
    found = Pages(texts).words
    assert Pages(texts).sizes.tolist() == [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    assert [found.texts(number) for number in range(len(texts))] == [reference.words(t) for t in texts]
    hashes = [found.hashes[found.first[n] : found.first[n + 1]].tolist() for n in range(len(texts))]
    names: dict[str, int] = {}
    for text, row in zip(texts, hashes, strict=True):
        for word, value in zip(reference.words(text), row, strict=True):
            assert names.setdefault(word, value) == value, "equal words have equal hashes"
    assert len(set(names.values())) == len(names), "and others have others"


@given(BATCHES)
@settings(max_examples=60)
def test_measures(texts: list[str]) -> None:
    pages = Pages(texts)
    gopher, repetition = GopherQuality(), GopherRepetition()
    sizes = sorted(repetition.top), sorted(repetition.repeated)
    cases: list[tuple[Filter, Any]] = [
        (gopher, lambda text: reference.quality(text, STOPWORDS)),
        (repetition, lambda text: reference.repetition(text, *sizes)),
        (FineWebQuality(), reference.fineweb),
    ]
    for operator, plain in cases:
        found = operator.measures(pages, exact=True)
        for number, text in enumerate(texts):
            if not text.strip() or not reference.words(text):
                continue
            for name, value in plain(text).items():
                np.testing.assert_allclose(
                    found[name][number], value, rtol=1e-12, err_msg=f"{name} of {text!r}"
                )


@given(BATCHES, st.floats(0.02, 0.5))
@settings(max_examples=50)
def test_a_bound_decides_like_the_value(texts: list[str], limit: float) -> None:
    """Verdicts may use bounds; the reason and the value of what is dropped are exact."""
    operator = GopherRepetition(
        max_lines=None,
        max_paragraphs=None,
        max_line_chars=None,
        max_paragraph_chars=None,
        top={},
        repeated={n: limit for n in (5, 7)},
    )
    verdicts = operator.judge(Pages(texts))
    for number, text in enumerate(texts):
        shares = {n: reference.covered(text, n) / len(text) for n in (5, 7)}
        failed = [n for n in (5, 7) if shares[n] > limit]
        reason = verdicts.reasons[verdicts.reason[number]] if verdicts.reason[number] >= 0 else None
        assert reason == (f"repeated runs of {failed[0]} words" if failed else None)
        if failed:
            assert verdicts.value[number] == pytest.approx(shares[failed[0]])


@given(BATCHES)
@settings(max_examples=100)
def test_c4(texts: list[str]) -> None:
    verdicts = C4Quality(min_sentences=5).judge(Pages(texts))
    left = verdicts.texts or texts
    for number, text in enumerate(texts):
        # Sections are parted by line feeds alone, and JavaScript is sought in ASCII.
        reason, kept = reference.c4(text)
        found = verdicts.reasons[verdicts.reason[number]] if verdicts.reason[number] >= 0 else ""
        assert found == reason
        if not reason:
            assert left[number] == kept


@pytest.mark.parametrize("operator", [GopherQuality(), GopherRepetition(), FineWebQuality(), C4Quality()])
def test_no_neighbour_matters(operator: Operator) -> None:
    """A document's verdict is the same alone and in any batch."""
    draw = np.random.default_rng(0)
    texts = ["", " ", "\n", "word"]
    for _ in range(80):
        texts.append(" ".join(draw.choice(PIECES[:-2], int(draw.integers(1, 200)))))
    together = operator.judge(Pages(texts))
    for number, text in enumerate(texts):
        alone = operator.judge(Pages([text]))
        assert alone.reason[0] == together.reason[number]
        np.testing.assert_equal(alone.value[0], together.value[number])
        assert (alone.texts or [text])[0] == (together.texts or texts)[number]


def test_every_rule_gives_its_reason() -> None:
    """One document for each rule of Gopher's quality, which fails no rule before it."""
    prose = "the quick brown foxes of that house have been with the others and came to be " * 5
    cases = {
        "too few words": "the and of",
        "too many words": "the and of house " * 26_000,
        "short words": "a b c d the of and is at " * 10,
        "long words": "incomprehensibilities incomprehensibilities the of " * 30,
        "hash signs": prose + "# " * 20,
        "ellipses": prose + "… w " * 20,
        "bullets": "- " + prose.replace(" ", "\n- "),
        "lines end in ellipses": prose
        + "".join(f"\nthe word of {n} houses was with them …" for n in range(9)),
        "words without letters": prose + "12 345 6789 " * 30,
        "too few stopwords": "several hundred wooden cabins stood empty " * 12,
    }
    verdicts = GopherQuality().judge(Pages(list(cases.values())))
    assert [verdicts.reasons[n] for n in verdicts.reason.tolist()] == list(cases)
    assert (verdicts.value != verdicts.limit).all()


def test_glyphs_agree_with_python() -> None:
    kinds = glyphs.flags()
    for code in [*range(0x3000), 0x3000, 0x4E2D, 0x1F600, 0x10FFFF]:
        character = chr(code)
        assert bool(kinds[code] & glyphs.SPACE) == character.isspace()
        assert bool(kinds[code] & glyphs.ALPHA) == character.isalpha()
    folded = glyphs.folded()
    assert "".join(chr(c) for c in folded[[ord(c) for c in "ÀéÑ5٣x"]]) == "aen00x"
