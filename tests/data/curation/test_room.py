"""A settlement is the same in any room, and stays within it."""

from __future__ import annotations

import hashlib
import os
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import room as rooms
from shunter.data.curation.extract import ExactDuplicates
from shunter.data.curation.firsts import Firsts
from shunter.data.curation.local import RepeatedBeginnings, RepeatedEdges, RepeatedSentences
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.operators import Barrier, Keys
from shunter.data.curation.pages import Pages, mixed
from shunter.data.curation.paragraphs import RepeatedParagraphs
from shunter.data.curation.room import Columns, Room, ranged
from shunter.data.curation.spans import RepeatedSpans
from shunter.data.curation.substrings import RepeatedStretches

WORDS = "the ship of state sails on over calm and rough water to that shore with all".split()  # noqa: SIM905


def texts_of(seed: int) -> list[str]:
    """Many copies, whole and in part."""
    draw = np.random.default_rng(seed)
    lines = [" ".join(draw.choice(WORDS, 9)) + "." for _ in range(12)]
    return ["\n\n".join(draw.choice(lines, int(draw.integers(0, 5)))) for _ in range(40)]


def keys_in(folder: Path, operator: Barrier, parts: list[list[str]], room: int) -> Columns:
    """The keys of chunks, as workers write them."""
    begin = 0
    for number, texts in enumerate(parts):
        keys = {
            **operator.keys_with(Pages(texts), {}),
            "number": np.arange(begin, begin + len(texts)) * 3,
        }
        for name, values in keys.items():
            np.save(folder / f"{number:06}.{name}.npy", values)
        begin += len(texts)
    return Columns(folder, len(parts), Room(folder, room))


OPERATORS: list[Barrier] = [
    NearDuplicates(),
    RepeatedParagraphs(min_left=0.7),
    ExactDuplicates(),
    RepeatedBeginnings(least=3, most=30),
    RepeatedSentences(),
    RepeatedEdges(),
    RepeatedStretches(words=6),
    RepeatedSpans(sentences=2),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
@given(st.integers(0, 1000), st.integers(4, 50), st.sampled_from([500, 4000]))
@settings(max_examples=3, deadline=None)
def test_any_room_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, operator: Barrier, seed: int, size: int, room: int
) -> None:
    texts = texts_of(seed)
    folder = tmp_path_factory.mktemp("keys")
    whole: Keys = {**operator.keys_with(Pages(texts), {}), "number": np.arange(len(texts)) * 3}
    expected = operator.settle(whole)
    parts = [texts[at : at + size] for at in range(0, len(texts), size)]
    found = operator.settle(keys_in(folder, operator, parts, room))
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    assert any(folder.glob("settled.*")) or room > 500


def test_no_document_at_all(tmp_path: Path) -> None:
    for operator in OPERATORS:
        settled = operator.settle(keys_in(tmp_path, operator, [], 1))
        assert all(not len(values) for values in settled.values())


def peak(work: Callable[[], Any]) -> int:
    """Most bytes that it holds at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_does_not_fit_lies_on_disk(tmp_path: Path) -> None:
    """Ten times the documents in one room: memory stays below it. Without a bound it grows with them."""
    draw = np.random.default_rng(0)
    room, peaks = 6_000_000, {}
    for count in (40_000, 400_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(10):
            rows = count // 10
            keys = {
                "digests": np.asfortranarray(
                    mixed(draw.integers(0, count // 2, (rows, 2)).astype(np.uint64))
                ),
                "signed": np.ones(rows, bool),
                "number": np.arange(number * rows, (number + 1) * rows),
            }
            for name, values in keys.items():
                np.save(folder / f"{number:06}.{name}.npy", values)
        operator = NearDuplicates(buckets=2)
        peaks[count] = [
            peak(lambda: operator.settle(Columns(folder, 10, Room(folder, room)))),  # noqa: B023
            peak(lambda: operator.settle(Columns(folder, 10))),  # noqa: B023
        ]
    assert peaks[40_000][0] <= room
    assert peaks[400_000][0] <= 2 * room
    assert peaks[400_000][1] > 4 * room


@given(
    st.lists(st.sampled_from([*range(10), *[3] * 90]).map(lambda n: n << 60), max_size=60)
    | st.lists(st.integers(0, 9).map(lambda n: n << 60), max_size=60),
    st.integers(1, 40),
    st.booleans(),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_ranges_have_every_value_once(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], size: int, zeros: bool, files: int
) -> None:
    """In order within a range, however few files may be open, also where most rows have one value; and what
    is told of each value is what a look at all of them tells."""
    folder = tmp_path_factory.mktemp("ranges")
    parts = [values[at : at + size] for at in range(0, len(values), size)]
    for number, part in enumerate(parts):
        np.save(folder / f"{number:06}.key.npy", np.array(part, np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "FILES", files)
        column = Columns(folder, len(parts))["key"]
        found = list(ranged(column, Room(folder, 100), 16, "key", zeros=zeros))
        rows = []
        for each in found:
            assert each.places.tolist() == sorted(each.places.tolist())
            assert len(each.places) <= 100 // 2 // 16 or len(found) == 1
        # What is told of a value holds when it is asked in order: blocks of one range follow each other.
        for each in ranged(column, Room(folder, 100), 16, "key", zeros=zeros):
            told = (each.values, each.places, each.first(), each.counts(), each.before())
            rows += list(zip(*(part.tolist() for part in told), strict=True))
    expected = [
        (v, n, values.index(v), values.count(v), values[:n].count(v))
        for n, v in enumerate(values)
        if zeros or v
    ]
    assert sorted(rows) == sorted(expected)
    assert not list(folder.glob("settled.*"))


@pytest.mark.parametrize("often", [0.0, 0.9])
@pytest.mark.parametrize("operator", [RepeatedSentences(), RepeatedStretches()], ids=lambda each: each.name)
def test_parts_of_documents_do_not_stay_in_memory(tmp_path: Path, operator: Barrier, often: float) -> None:
    """800,000 sentences, or windows of words, in a room of 12 MB, where to sort them takes twice that; also
    where nine of ten are the same."""
    draw = np.random.default_rng(0)
    for number in range(4):
        hashes = mixed(draw.integers(0, 300_000, 200_000).astype(np.uint64))
        hashes[draw.random(200_000) < often] = 7
        np.save(tmp_path / f"{number:06}.hashes.npy", hashes)
        np.save(tmp_path / f"{number:06}.rows.npy", np.full(2_000, 100))
        np.save(tmp_path / f"{number:06}.number.npy", np.arange(2_000) + 2_000 * number)
    bounded = peak(lambda: operator.settle(Columns(tmp_path, 4, Room(tmp_path, 12_000_000))))
    assert bounded <= 12_000_000
    assert peak(lambda: operator.settle(Columns(tmp_path, 4))) > 2 * bounded


COMMON: list[Barrier] = [
    RepeatedBeginnings(),
    RepeatedEdges(),
    ExactDuplicates(),
    NearDuplicates(buckets=2),
    RepeatedParagraphs(),
]


@pytest.mark.parametrize("operator", COMMON, ids=lambda each: each.name)
def test_what_stands_everywhere_does_not_stay_in_memory(tmp_path: Path, operator: Barrier) -> None:
    """400,000 documents in a room of 12 MB, nine of ten with one beginning, end, digest and paragraph. What
    lies in mapped files is not counted."""
    draw = np.random.default_rng(0)
    for number in range(4):
        hashes = mixed(draw.integers(0, 300_000, 100_000).astype(np.uint64))
        hashes[draw.random(100_000) < 0.9] = 7
        twice = np.asfortranarray(np.repeat(hashes[:, None], 2, axis=1))
        keys = {
            "hashes": hashes,
            "rows": np.ones(100_000, np.int64),
            "edges": np.asfortranarray(np.repeat(hashes[:, None], 6, axis=1)),
            "high": hashes,
            "low": hashes,
            "digests": twice if isinstance(operator, NearDuplicates) else hashes,
            "signed": np.ones(100_000, bool),
            "sizes": np.full(100_000, 50, np.uint32),
            "chars": np.full(100_000, 60),
            "number": np.arange(100_000) + 100_000 * number,
        }
        for name, values in keys.items():
            np.save(tmp_path / f"{number:06}.{name}.npy", values)
    bounded = peak(lambda: operator.settle(Columns(tmp_path, 4, Room(tmp_path, 12_000_000))))
    assert bounded <= 12_000_000
    assert peak(lambda: operator.settle(Columns(tmp_path, 4))) > 2 * bounded


def resident() -> int:
    """Kilobytes of files and shared memory that this process holds."""
    told = Path("/proc/self/status").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in told if line.startswith(("RssFile", "RssShmem")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_pages_that_are_let_go_hold_what_was_written(tmp_path: Path) -> None:
    array = Room(tmp_path, 1).array("some", 4_000_000, np.int64)
    before = resident()
    for cut in rooms.blocks(len(array)):
        array[cut] = np.arange(cut.start, cut.stop)
    held = resident()
    rooms.rest(array)
    assert held - before > 25_000 > resident() - before
    assert (array[::1000] == np.arange(0, 4_000_000, 1000)).all()
    rooms.rest(np.zeros(3))  # of one in memory nothing changes


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), max_size=40))
@settings(max_examples=20, deadline=None)
def test_texts_whose_digests_share_one_half_are_told_apart(pairs: list[tuple[int, int]]) -> None:
    high, low = np.array(pairs, np.uint64).reshape(-1, 2).T
    settled = ExactDuplicates().settle({"high": high, "low": low, "number": np.arange(len(pairs))})
    assert settled["root"].tolist() == [pairs.index(pair) for pair in pairs]


@given(st.lists(st.integers(0, 60), max_size=200))
@settings(max_examples=30, deadline=None)
def test_the_first_with_a_digest(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    """A dictionary of three and the rest in files, as if all were in one dictionary."""
    firsts = Firsts(tmp_path_factory.mktemp("firsts"), most=3, bits=8)
    known: dict[int, int] = {}
    for number, value in enumerate(values):
        digest = hashlib.blake2b(bytes([value]), digest_size=16).digest()
        assert firsts.add(digest, number) == known.get(value)
        known.setdefault(value, number)


def test_digests_of_one_first_half_are_told_apart(tmp_path: Path) -> None:
    firsts = Firsts(tmp_path, most=2, bits=8)
    digests = [bytes(8) + bytes([n]) * 8 for n in range(9)]
    assert [firsts.add(digest, n) for n, digest in enumerate(digests)] == [None] * 9
    assert [firsts.add(digest, 99) for digest in digests] == list(range(9))


def test_a_corpus_has_more_chunks_than_a_process_may_open_files(tmp_path: Path) -> None:
    for number in range(200):
        np.save(tmp_path / f"{number:06}.key.npy", np.full((1000, 2), number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        column = np.asarray(Columns(tmp_path, 200)["key"])[:, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert column.tolist() == np.repeat(np.arange(200), 1000).tolist()
