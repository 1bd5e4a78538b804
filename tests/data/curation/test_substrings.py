"""Repeated stretches: what goes is what a look at every window of the corpus says, however it is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import chain, runner
from shunter.data.curation.pages import Pages
from shunter.data.curation.runner import Runner
from shunter.data.curation.substrings import RepeatedStretches
from tests.data.curation.test_runner import cut

WORDS = 4


def expected(texts: list[str]) -> list[list[str]]:
    """The words that stay of each text, by windows in a set."""
    seen: set[tuple[str, ...]] = set()
    left = []
    for text in texts:
        words = text.split()
        gone = [False] * len(words)
        for at in range(len(words) - WORDS + 1):
            window = tuple(words[at : at + WORDS])
            if window in seen:
                gone[at : at + WORDS] = [True] * WORDS
            seen.add(window)
        left.append([word for word, out in zip(words, gone, strict=True) if not out])
    return left


def found(folder: Path, texts: list[str], size: int, room: int) -> tuple[dict[int, str], list[int]]:
    operator = RepeatedStretches(kind="repeated-stretches", words=WORDS, min_left=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "MB", 1)
        chained = Runner(folder, [operator], 1, lambda stage, done: None, memory=room)
        chained.run(cut(texts, size))
    left = {
        int(n) // 2: text for part in chained.left() for n, text in zip(part.number, part.texts, strict=True)
    }
    return left, [int(record["number"]) // 2 for record in chained.dropped(1)]


texts_ = st.lists(st.lists(st.sampled_from("abc"), max_size=14).map(" ".join), min_size=1, max_size=8)


@given(texts_, st.integers(1, 8), st.integers(1, 40), st.integers(30, 9000))
@settings(max_examples=25, deadline=None)
def test_windows_in_a_set_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, batch: int, room: int
) -> None:
    """Also for any chunks, batches and room to settle in (bytes)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "BATCH_CHARS", batch)
        left, dropped = found(tmp_path_factory.mktemp("chain"), texts, size, room)
    wanted = expected(texts)
    for number, text in enumerate(texts):
        if wanted[number] or not text:
            assert left[number].split() == wanted[number]
        else:
            assert number in dropped


def test_what_stays_stands_as_it_stood() -> None:
    draw = np.random.default_rng(0)
    name = [f"w{n}" for n in range(200)]
    common = " ".join(draw.choice(name, 60))
    texts = [f"One (1).\n\n{common}\n\nEnd.", f"Two, too:\n{common}!\nAnd  more of it."]
    operator = RepeatedStretches(kind="repeated-stretches", min_left=0.01)
    pages = Pages(texts)
    settled = operator.settle({**operator.keys(pages), "number": np.arange(2)})
    verdicts = operator.judge_settled(pages, {**settled, "number": np.arange(2)})
    assert verdicts.texts == [texts[0], "Two, too:\n!\nAnd  more of it."]
    assert verdicts.counts == {"repeated stretches": 1, "repeated characters": len(common)}
    strict = RepeatedStretches(kind="repeated-stretches").judge_settled(pages, settled)
    assert strict.reason.tolist() == [-1, 0]
    assert strict.value[1] < 0.25
