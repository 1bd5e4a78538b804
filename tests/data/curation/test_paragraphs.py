"""Paragraphs that stand earlier go, but the first of each stays somewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import paragraphs
from shunter.data.curation.operators import Verdicts
from shunter.data.curation.pages import Pages
from shunter.data.curation.paragraphs import RepeatedParagraphs

CORPORA = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=9)
SHARES = st.sampled_from([0.0, 0.25, 0.6, 0.9])


def paragraph(number: int) -> str:
    """Those of greater numbers are longer."""
    return chr(97 + number) * (40 + 9 * number)


def judged(operator: RepeatedParagraphs, texts: Sequence[str]) -> Verdicts:
    pages = Pages(texts)
    return operator.judge_settled(
        pages, operator.settle({**operator.keys(pages), "number": np.arange(len(pages))})
    )


def left_of(verdicts: Verdicts, texts: Sequence[str]) -> list[str | None]:
    after = verdicts.texts or texts
    return [text if kept else None for text, kept in zip(after, verdicts.kept.tolist(), strict=True)]


def in_turn(documents: list[list[int]], times: int, min_left: float) -> list[str | None]:
    """One document after another: what stands often enough in those that stayed goes."""
    seen: Counter[int] = Counter()
    found: list[str | None] = []
    for document in documents:
        own, kept = Counter(seen), []
        for number in document:
            if own[number] < times:
                kept.append(number)
            own[number] += 1
        text, before = ("\n\n".join(map(paragraph, numbers)) for numbers in (kept, document))
        removed = sum(len(paragraph(n)) for n in document if seen[n] >= times)
        if removed and 1 - removed / len(before) < min_left:
            found.append(None)
            continue
        seen = own
        found.append(text)
    return found


def test_the_plain_case() -> None:
    first, second, third = "a" * 50, "b" * 50, "c" * 10
    texts = [f"{first}\n\n{third}", f"{second}\n\n\n{first}\n\n{third}", f"{first}\n\n{second}", third]
    verdicts = judged(RepeatedParagraphs(), texts)
    assert verdicts.kept.tolist() == [True, True, False, True]
    assert verdicts.texts is not None
    assert verdicts.texts[1] == f"{second}\n\n{third}"
    assert verdicts.texts[0] == texts[0]
    assert verdicts.counts == {"repeated paragraphs": 3}


def test_what_stands_first_in_a_document_that_goes_is_not_lost() -> None:
    common = "\n\n".join(paragraph(n) for n in range(6))
    texts = [common, f"{common}\n\n{'u' * 50}", f"{'o' * 60}\n\n{'u' * 50}"]
    assert left_of(judged(RepeatedParagraphs(), texts), texts) == [texts[0], None, texts[2]]


def test_what_repeats_itself_alone_stays() -> None:
    texts = ["\n\n".join(["a" * 50] * 9), "\n\n".join(["b" * 50, "a" * 50, "b" * 50])]
    assert left_of(judged(RepeatedParagraphs(min_left=0.5), texts), texts) == ["a" * 50, "b" * 50]


@given(CORPORA, st.integers(1, 2), SHARES)
@settings(max_examples=80, deadline=None)
def test_as_if_one_document_came_after_another(
    documents: list[list[int]], times: int, min_left: float
) -> None:
    texts = ["\n\n".join(map(paragraph, document)) for document in documents]
    found = left_of(judged(RepeatedParagraphs(times=times, min_left=min_left), texts), texts)
    assert found == in_turn(documents, times, min_left)


@given(CORPORA, SHARES, st.sampled_from([2, 64]))
@settings(max_examples=60, deadline=None)
def test_every_paragraph_stands_somewhere(documents: list[list[int]], min_left: float, rounds: int) -> None:
    """Also where the rounds end before all is settled; and what goes has little else than what stays."""
    texts = ["\n\n".join(map(paragraph, document)) for document in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paragraphs, "ROUNDS", rounds)
        verdicts = judged(RepeatedParagraphs(min_left=min_left), texts)
    left = left_of(verdicts, texts)
    there = {part for text in left if text for part in text.split("\n\n")}
    for number, (text, kept) in enumerate(zip(texts, left, strict=True)):
        repeats = [part for part in text.split("\n\n") if part in there]
        if kept is None:
            assert 1 - sum(map(len, repeats)) / len(text) < min_left
        else:
            assert set(text.split("\n\n")) <= there, number


def test_texts_that_are_made_to_collide_do_not() -> None:
    """The Thue-Morse word and its complement have one hash, whatever the radix."""
    word = [bin(n).count("1") % 2 for n in range(1024)]
    texts = ["".join("ab"[bit] for bit in word), "".join("ba"[bit] for bit in word)]
    pages = Pages(texts)
    assert pages.hashes_whole[0] == pages.hashes_whole[1], "why a digest is taken"
    assert judged(RepeatedParagraphs(), texts).kept.all()
