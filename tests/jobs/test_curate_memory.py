"""`how.memory_mb` changes no corpus: barriers that spill to disk, also where the job is killed while they do.

A megabyte is a kilobyte here, so that a small corpus is greater than the room.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shunter.data.curation import room, runner
from shunter.jobs import curate
from tests.data.curation.test_runner import corpus as texts_of
from tests.jobs.conftest import Work, work_in
from tests.jobs.test_curate_chain import write

OPERATORS: list[dict[str, Any]] = [
    {"kind": "exact-duplicates"},
    {"kind": "repeated-beginnings", "least": 5},
    {"kind": "repeated-edges"},
    {"kind": "repeated-sentences", "min_chars": 5},
    {"kind": "repeated-spans", "sentences": 2, "min_sentences": 1},
    {"kind": "repeated-stretches", "words": 10},
    {"kind": "repeated-paragraphs"},
    {"kind": "near-duplicates"},
]
HEADER = "This stands at the top of every page there is. "
FILES = ("train/00000.parquet", "dropped.jsonl", "summary.json")
KILO = 1000
ROOM = 8  # KILO: of 90 documents, less than any of these barriers wants


def config(memory: int) -> dict[str, Any]:
    """The recipe; only `how` differs."""
    how = {"workers": 1, "chunk_chars": 20_000, "memory_mb": memory}
    sources = [{"name": "web", "path": "web"}]
    return {"sources": sources, "min_chars": 1, "deduplicate": False, "operators": OPERATORS, "how": how}


def made(out: Path) -> list[bytes]:
    """What the job wrote."""
    return [(out / name).read_bytes() for name in FILES]


def spilt(patch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is written aside from now on, as it is."""
    names: list[str] = []
    spread = room._spread

    def spied(column: Any, paths: list[Path], *rest: Any) -> None:
        names.append(paths[0].name.split(".")[1])
        spread(column, paths, *rest)

    patch.setattr(runner, "MB", KILO)
    patch.setattr(room, "_spread", spied)
    return names


def killed(folder: Path, number: int) -> None:
    """The job, killed when so many ranges are on disk or have been read."""
    left, read = [number], room._rows

    def dies(path: Path, *rest: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "MB", KILO)
        patch.setattr(room, "_rows", dies)
        work_in(folder)(curate.JOB, config(ROOM), name="killed")


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Pages with one header, copies among them."""
    write(tmp_path / "web", [HEADER * (n % 10 > 0) + text for n, text in enumerate(texts_of(5, 90))], 2)
    return tmp_path


def test_barriers_that_spill_leave_the_same_corpus(
    web: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, metrics = work(curate.JOB, config(256), name="whole")
    assert metrics["documents"] > 5
    names = spilt(monkeypatch)
    found, _ = work(curate.JOB, config(ROOM), name="spilt")
    assert {"equal", "beginnings", "edges", "sentences", "windows", "paragraphs", "bucket"} <= set(names)
    assert made(found) == made(expected)


@pytest.mark.parametrize(("number", "memory"), [(0, 4), (25, 256)])
def test_killed_while_it_spills_and_run_again_in_another_room(
    web: Path, work: Work, number: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = work(curate.JOB, config(256), name="whole")
    child = multiprocessing.get_context("spawn").Process(target=killed, args=(web, number))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    place = web / "made" / "killed" / "private"
    assert list(place.rglob("settled.*.rows")), "it was killed while ranges lay on disk"
    monkeypatch.setattr(runner, "MB", KILO if memory < ROOM else runner.MB)
    found, _ = work(curate.JOB, config(memory), name="killed")
    assert made(found) == made(expected)
    assert not list(place.rglob("settled.*.rows"))
