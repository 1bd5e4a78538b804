"""A chain gives the same rows however it is cut, and whatever is killed."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.curation import chain
from shunter.data.curation.chain import Documents, stages
from shunter.data.curation.kinds import preset
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.operators import Operator
from shunter.data.curation.pages import Pages
from shunter.data.curation.paragraphs import RepeatedParagraphs
from shunter.data.curation.runner import Done, Runner
from tests.data.curation.killer import Killer
from tests.draws import examples

WORDS = ("the ship of state sails on over calm and rough water to that shore with all who have been").split()  # noqa: SIM905


def corpus(seed: int, size: int = 60) -> list[str]:
    """Prose, lists, repeats, copies with a word changed, empty texts."""
    draw = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(size):
        kind = int(draw.integers(0, 6))
        lines = [" ".join(draw.choice(WORDS, int(draw.integers(6, 14)))) + "." for _ in range(9)]
        if kind == 0 and texts:
            words = texts[int(draw.integers(0, len(texts)))].split(" ")
            words[len(words) // 2] = "changed"
            texts.append(" ".join(words))
        elif kind == 1:
            texts.append("\n".join(lines[:2] * 4))
        elif kind == 2 and texts:
            texts.append("\n\n".join([lines[0], texts[int(draw.integers(0, len(texts)))].split("\n\n")[0]]))
        else:
            texts.append("\n\n".join(lines[: int(draw.integers(0, 9))]))
    return texts


def cut(texts: list[str], size: int) -> list[Documents]:
    return [
        Documents(np.arange(at, min(at + size, len(texts)), dtype=np.int64) * 2, texts[at : at + size])
        for at in range(0, len(texts), size)
    ]


OPERATORS: list[Operator] = [RepeatedParagraphs(min_left=0.6), *preset("fineweb2"), *preset("fineweb")[:-2]]


def work(folder: Path, operators: list[Operator], chunks: list[Documents], workers: int = 1) -> object:
    """All that a chain makes."""
    runner = Runner(folder, operators, workers, lambda stage, done: None)
    runner.run(chunks)
    rows = [
        (int(number), text, int(size))
        for part in runner.left()
        if len(part)
        for number, text, size in zip(part.number, part.texts, part.facts["cluster_size"], strict=True)
    ]
    dropped = [list(runner.dropped(stage)) for stage in range(len(runner.stages))]
    return rows, dropped, [(name, tally.data()) for name, tally in runner.tallies()], runner.samples()


@given(st.integers(0, 1000), st.integers(1, 70), st.integers(1, 5000))
@settings(max_examples=examples(3, 20), deadline=None)
def test_cuts_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, batch: int
) -> None:
    texts = corpus(seed)
    expected = work(tmp_path_factory.mktemp("one"), OPERATORS, cut(texts, len(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "BATCH_CHARS", batch)
        assert work(tmp_path_factory.mktemp("other"), OPERATORS, cut(texts, size)) == expected


def test_every_document_stays_or_has_a_reason(tmp_path: Path) -> None:
    texts = corpus(3, 200)
    rows, dropped, tallies, samples = work(tmp_path, OPERATORS, cut(texts, 50))  # type: ignore[misc]
    gone = [record["number"] for part in dropped for record in part]
    assert sorted([row[0] for row in rows] + gone) == [2 * n for n in range(200)]
    assert rows
    assert len({record["operator"] for part in dropped for record in part}) > 2
    assert all(
        before["kept"] == after["documents"] for (_, before), (_, after) in itertools.pairwise(tallies)
    )
    assert all({"operator", "reason", "value", "limit", "text"} <= set(sample) for sample in samples)


class _Killed(BaseException):
    """Stands for a kill: no handler of the runner expects it."""


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_a_rerun_completes(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at a random renaming, again and again, until a run comes through."""
    texts = corpus(seed)
    expected = work(tmp_path / "whole", OPERATORS, cut(texts, 7))
    draw, replace = np.random.default_rng(seed), os.replace
    left = [0]

    def mortal(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise _Killed
        if left[0] == -1 and draw.random() < 0.5:
            raise _Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", mortal)
    for attempt in range(200):
        left[0] = int(draw.integers(1, 60))
        try:
            found = work(tmp_path / "mortal", OPERATORS, cut(texts, 7))
        except _Killed:
            continue
        assert found == expected
        assert attempt > 1
        return
    raise AssertionError("never came through")


@pytest.mark.parametrize("deaths", [1, pytest.param(9, marks=pytest.mark.long)])
def test_a_killed_worker(tmp_path: Path, deaths: int) -> None:
    """One that dies is replaced; when all do, the run ends with a sentence."""
    texts = corpus(1)
    poison = tmp_path / "poison"
    poison.mkdir()
    for number in range(deaths):
        (poison / str(number)).touch()
    operators: list[Operator] = [Killer(folder=str(poison)), NearDuplicates()]
    if deaths == 1:
        found = work(tmp_path / "pool", operators, cut(texts, 20), workers=2)
        assert found == work(tmp_path / "alone", operators, cut(texts, 20))
    else:
        with pytest.raises(ShunterError, match="killed 4 times"):
            work(tmp_path / "pool", operators, cut(texts, 20), workers=2)


def test_a_request_to_stop_keeps_what_is_done(tmp_path: Path) -> None:
    seen: list[Done] = []

    def watch(stage: int, done: Done) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    runner = Runner(tmp_path, OPERATORS, 1, watch)
    with pytest.raises(KeyboardInterrupt):
        runner.run(cut(corpus(0), 20))
    assert len(list((tmp_path / "0").glob("*.json"))) == 2


def test_arrays_do_not_wait_for_the_collector() -> None:
    """Pages and their words point at each other: a chunk's worth of them would be hundreds of megabytes."""
    operators = [*preset("fineweb"), RepeatedParagraphs()]
    documents = cut([text for text in corpus(2, 120) if text], 999)[0]
    first = stages(operators)[0]
    chain.run(first, documents, None)  # tables are made
    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chain, "BATCH_CHARS", 2000)
            chain.run(first, documents, None)
        assert not [each for each in gc.get_objects() if isinstance(each, Pages) and len(each) > 1]
    finally:
        gc.enable()
