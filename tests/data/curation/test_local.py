"""Deduplication inside a source: each mechanism by itself, and no source minds another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import chain
from shunter.data.curation.chain import Documents
from shunter.data.curation.local import RepeatedBeginnings, RepeatedEdges, RepeatedSentences, sentences
from shunter.data.curation.operators import Operator
from shunter.data.curation.pages import Pages
from shunter.data.curation.runner import Runner

NAMES = [f"{a}{b}word" for a in "bcdfgklm" for b in "aeiou"]


def run(folder: Path, operator: Operator, texts: list[str], sources: list[str], size: int = 10**6) -> Any:
    """What is left, what left, and the edits."""
    runner = Runner(folder, [operator], 1, lambda stage, done: None)
    numbers = np.arange(len(texts), dtype=np.int64)
    facts = np.array(sources, np.str_)
    runner.run(
        Documents(numbers[at : at + size], texts[at : at + size], {"source": facts[at : at + size]})
        for at in range(0, len(texts), size)
    )
    left = {int(n): t for part in runner.left() for n, t in zip(part.number, part.texts, strict=True)}
    return left, [(r["number"], r["reason"]) for r in runner.dropped(1)], dict(runner.tallies()[0][1].edits)


def words(draw: np.random.Generator, count: int) -> str:
    return " ".join(draw.choice(NAMES, count).tolist())


def test_beginnings(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    long, other = words(draw, 300), words(draw, 25)
    texts = [
        long,
        long[:1500] + " and then something else",  # of the same 220 words
        " ".join(long.split()[:47]),  # cut: its first 40 are known
        " ".join(long.split()[:15]),  # too short to say
        long.upper() + "!",
        " ".join(word[:4] + "xyz" for word in long.split()),  # the first four letters count
        other,
        long,  # another source
    ]
    left, dropped, _ = run(tmp_path, RepeatedBeginnings(kind="repeated-beginnings"), texts, ["a"] * 7 + ["b"])
    assert sorted(left) == [0, 3, 6, 7]
    assert {reason for _, reason in dropped} == {"repeated beginning"}


def test_sentences_by_place() -> None:
    text = "One is here. Two, at 3.5 m, too!\nThree\n\n  Four…  五です。六です"
    pages = Pages([text, "", "A.B. C"])
    spans = sentences(pages)
    joined = "\n".join(pages.texts) + "\n"
    found = [joined[a:b].strip() for a, b in zip(spans.begins, spans.ends, strict=True)]
    assert found == ["One is here.", "Two, at 3.5 m, too!", "Three", "Four…  五です。六です", "A.B.", "C"]
    assert spans.first.tolist() == [0, 4, 4, 6]


def test_poor_sentences_go_from_the_third_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    poor = "Click here to read more about our many offers today."
    good = "It was the best of the times that we had in all of it."
    own = [f"The {words(draw, 9)} is of the kind that is here. " * 1 for _ in range(16)]
    texts = [f"{own[3 * n]}{poor} {own[3 * n + 1]}{good} {own[3 * n + 2]}".strip() for n in range(5)]
    sources = ["a", "a", "b", "a", "a"]
    left, dropped, edits = run(tmp_path, RepeatedSentences(kind="repeated-sentences"), texts, sources)
    assert not dropped
    assert [poor in left[n] for n in range(5)] == [True, True, True, False, False]
    assert all(good in left[n] for n in range(5))
    assert left[3] == texts[3].replace(poor + " ", "")
    assert edits == {"repeated sentences": 2}


@pytest.mark.parametrize(("new", "stays"), [(1, False), (2, True)])
def test_three_quarters_said_before(tmp_path: Path, new: int, stays: bool) -> None:
    draw = np.random.default_rng(2)
    said = [f"The {words(draw, 9)}." for _ in range(3)]
    fresh = [f"The {words(draw, 9)}." for _ in range(new)]
    texts = [" ".join(said), " ".join([*said, *fresh])]
    left, dropped, _ = run(tmp_path, RepeatedSentences(kind="repeated-sentences"), texts, ["a", "a"])
    assert (1 in left) == stays
    assert dropped == ([] if stays else [(1, "mostly said before")])


@pytest.mark.parametrize(("size", "times"), [(6, 3), (5, 4), (4, 5)])
def test_headers_and_footers_at_their_bounds(tmp_path: Path, size: int, times: int) -> None:
    draw = np.random.default_rng(3)
    head, foot = words(draw, size).title(), words(draw, size)
    for count in (times - 1, times):
        bodies = [words(draw, 30) for _ in range(count)]
        # Words around the edge differ, so that no shorter or longer run is shared.
        texts = [f"{head} {body}\n{foot.upper() if n % 2 else foot}." for n, body in enumerate(bodies)]
        operator = RepeatedEdges(kind="repeated-edges", sizes=[size], times=[times])
        left, _, edits = run(tmp_path / str(count), operator, texts, ["a"] * count)
        if count < times:
            assert list(left.values()) == texts
        else:
            assert edits == {"headers": times, "footers": times} or edits["headers"] == times
            assert all(text.startswith(body[:20]) for text, body in zip(left.values(), bodies, strict=True))


def test_the_longest_run_that_enough_share_goes(tmp_path: Path) -> None:
    """Five share four words at their end, three of them six: these lose six, the others four."""
    draw = np.random.default_rng(4)
    foot, longer = "this is the end", "and so this is the end"
    bodies = [words(draw, 30) for _ in range(5)]
    texts = [f"{body} {longer if n < 3 else foot}" for n, body in enumerate(bodies)]
    left, _, _ = run(tmp_path, RepeatedEdges(kind="repeated-edges"), texts, ["a"] * 5)
    assert list(left.values()) == bodies


def test_short_documents_have_no_edges(tmp_path: Path) -> None:
    texts = ["one two three four", "", "five"] * 9
    left, _, edits = run(tmp_path, RepeatedEdges(kind="repeated-edges"), texts, ["a"] * 27)
    assert list(left.values()) == texts
    assert not edits


OPERATORS: list[Operator] = [
    RepeatedBeginnings(kind="repeated-beginnings", least=3, most=9),
    RepeatedSentences(kind="repeated-sentences", min_chars=12),
    RepeatedEdges(kind="repeated-edges", sizes=[2], times=[3]),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 300))
@settings(max_examples=6, deadline=None)
def test_cuts_and_other_sources_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, operator: Operator, seed: int, size: int, batch: int
) -> None:
    draw = np.random.default_rng(seed)
    pool = [f"{words(draw, int(draw.integers(2, 6)))}." for _ in range(8)]
    texts = [" ".join(draw.choice(pool, int(draw.integers(0, 6)))) for _ in range(20)]
    sources = draw.choice(["a", "b"], 20).tolist()
    whole = run(tmp_path_factory.mktemp("one"), operator, texts, sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "BATCH_CHARS", batch)
        assert run(tmp_path_factory.mktemp("two"), operator, texts, sources, size) == whole
    mine = [n for n in range(20) if sources[n] == "a"]
    alone = run(tmp_path_factory.mktemp("three"), operator, [texts[n] for n in mine], ["a"] * len(mine))
    assert {mine[n]: text for n, text in alone[0].items()} == {n: t for n, t in whole[0].items() if n in mine}
