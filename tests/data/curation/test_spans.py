"""Runs of sentences that stand earlier: what goes is what a set of all windows says, however it is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import chain
from shunter.data.curation.runner import Runner
from shunter.data.curation.spans import RepeatedSpans
from tests.data.curation.test_runner import cut

SAID = ["One is said.", "Two is SAID!", "two is said!", "And three?", "Four \u2026 four."]


def expected(documents: list[list[str]], width: int, least: int) -> dict[int, list[str]]:
    """The sentences that stay of each document that stays."""
    seen: set[tuple[str, ...]] = set()
    left = {}
    for number, said in enumerate(documents):
        gone = [False] * len(said)
        for at in range(len(said) - width + 1):
            window = tuple(sentence.lower() for sentence in said[at : at + width])
            if window in seen:
                gone[at : at + width] = [True] * width
            seen.add(window)
        stays = [sentence for sentence, out in zip(said, gone, strict=True) if not out]
        if not any(gone) or len(stays) >= least:
            left[number] = stays
    return left


@given(
    st.lists(st.lists(st.sampled_from(SAID), max_size=8), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 8),
    st.integers(1, 60),
)
@settings(max_examples=25, deadline=None)
def test_windows_in_a_set_say_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[str]],
    width: int,
    least: int,
    size: int,
    batch: int,
) -> None:
    """Also for any chunks and batches. A document of which nothing is left goes in any case."""
    texts = [" ".join(said) for said in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "BATCH_CHARS", batch)
        operator = RepeatedSpans(sentences=width, min_sentences=least)
        runner = Runner(tmp_path_factory.mktemp("chain"), [operator], 1, lambda stage, done: None)
        runner.run(cut(texts, size))
    found = {int(n) // 2: t for part in runner.left() for n, t in zip(part.number, part.texts, strict=True)}
    assert found == {number: " ".join(said) for number, said in expected(documents, width, least).items()}
    dropped = [int(record["number"]) // 2 for record in runner.dropped(1)]
    assert sorted([*found, *dropped]) == list(range(len(texts)))


def test_lines_are_sentences_and_a_short_text_that_lost_nothing_stays(tmp_path: Path) -> None:
    menu = "Home\nAbout us\nContact\n"
    own = [" ".join(f"Sentence {n} of text {t}." for n in range(6)) for t in range(2)]
    texts = [menu + own[0], menu + own[1], "Home\nAbout us", menu]
    runner = Runner(tmp_path, [RepeatedSpans()], 1, lambda stage, done: None)
    runner.run(cut(texts, 2))
    left = [text for part in runner.left() for text in part.texts]
    assert left == [texts[0], own[1], texts[2]]
    (record,) = runner.dropped(1)
    assert (record["reason"], record["value"], record["limit"]) == ("little but repeats", 0.0, 5.0)
