"""curate and what goes wrong: damaged files, overlong lines, a full disk, kills at any moment.

What this cannot show: a power cut. That files are brought to the disk in order is shown by the calls.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.data import corpus, readers
from shunter.data.curation import runner
from shunter.data.curation.chain import stages
from shunter.data.sources import Problem, SourceConfig, documents
from shunter.jobs import curate
from shunter.recipe import disk
from shunter.recipe.store import Store
from tests.data.curation.test_runner import corpus as texts_of
from tests.jobs.conftest import Work
from tests.jobs.test_curate_chain import CONFIG, FILES, lines, write

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {**CONFIG, "preset": None, "operators": []}


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["chain", "plain"])
def test_damaged_files_are_told_and_passed(tmp_path: Path, work: Work, config: dict[str, Any]) -> None:
    """Cut and foreign gzip members, garbage, invalid UTF-8, empty files, a column that is not there."""
    web = tmp_path / "web"
    web.mkdir()
    texts = [f"{n} {text}" for n, text in enumerate(texts_of(5, 60)) if text]
    whole = gzip.compress(jsonl(texts[:10]))
    cut = gzip.compress(jsonl(texts[10:30]))[:-30]
    (web / "0.jsonl.gz").write_bytes(whole + cut + gzip.compress(jsonl(["after the damage"])))
    (web / "1.jsonl.gz").write_bytes(b"\x00\x01 no gzip at all")
    (web / "2.jsonl").write_bytes(bytes(random.Random(0).randbytes(5000)))
    (web / "3.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n{"other": 1}\n' + jsonl(texts[30:]))
    for empty in ("4.jsonl", "5.jsonl.gz", "6.txt"):
        (web / empty).write_bytes(b"")
    (web / "7.txt").write_bytes(b"bytes that are \xff no text, but the rest of this is")
    given = {**config, "sources": [{"name": "web", "path": "web"}], "how": {"workers": 1}}
    out, metrics = work(curate.JOB, given)
    problems = lines(out / "problems.jsonl")
    assert metrics["problems"] == len(problems)
    assert {Path(problem["file"]).name for problem in problems} == {
        "0.jsonl.gz", "1.jsonl.gz", "2.jsonl", "3.jsonl", "7.txt",
    }  # fmt: skip
    assert any("breaks off" in p["problem"] for p in problems if p["file"].endswith("0.jsonl.gz"))
    kept = [each.id for split in ("train", "heldout") for each in corpus.texts(out / split)]
    told = kept + [record["id"] for record in lines(out / "dropped.jsonl")]
    assert sorted(told) == sorted(f"web:{n}" for n in range(len(told)))
    assert len(told) >= 10 + len(texts[30:]) + 2


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["chain", "plain"])
def test_sources_of_which_nothing_can_be_read(tmp_path: Path, work: Work, config: dict[str, Any]) -> None:
    """The sentence tells of the first problem, and the list of all is kept."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl").write_bytes(b'{"text": 5}\nno JSON\n')
    with pytest.raises(ShunterError, match=r"read: 2 .* web/a\.jsonl:1: .* int, not text") as e:
        work(curate.JOB, {**config, "sources": [{"name": "web", "path": "web"}]})
    assert len(lines(Path(str(e.value.where)) / "problems.jsonl")) == 2
    (tmp_path / "web" / "a.jsonl").write_bytes(b"")
    with pytest.raises(ShunterError, match="no document could be read; the sources are empty"):
        work(curate.JOB, {**config, "sources": [{"name": "web", "path": "web"}]}, name="empty")


def test_overlong_lines_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of a hundred bytes: counted once each, and lines after them keep their numbers."""
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100)
    fits = json.dumps({"text": "f" * 88})
    assert len(fits) == 100
    rows = [fits, "x" * 101, '{"text": "two"}', '{"text": "' + "y" * 5000 + '"}', "broken", fits]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text("z" * 300)
    problems: list[Problem] = []
    found = list(documents(SourceConfig(path="*.jsonl"), tmp_path, problems.append))
    assert [document.text for document in found] == ["f" * 88, "two", "f" * 88]
    told = [(problem.file, problem.line, problem.problem) for problem in problems]
    assert told[0] == ("a.jsonl", 2, "a line of 102 bytes")
    assert told[1][:2] == ("a.jsonl", 4)
    assert told[2][:2] == ("a.jsonl", 5)
    assert told[3] == ("b.jsonl", 1, "a line of 300 bytes")


@pytest.mark.long
def test_a_line_of_a_gigabyte_takes_bounded_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", 1) as file:
        file.write(jsonl(["before"]) + b'{"text": "')
        for _ in range(1024):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + jsonl(["after"]))
    code = (
        "import resource, sys; from pathlib import Path; from shunter.data.sources import *; told = [];"
        "found = list(documents(SourceConfig(path='a.jsonl.gz'), Path(sys.argv[1]), told.append));"
        "print([d.text for d in found], len(told), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    texts, _, rest = ran.stdout.partition("] ")
    assert texts == "['before', 'after'"
    count, peak = map(int, rest.split())
    assert count == 1
    assert peak < 400_000, "kB"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder of half a megabyte, where that can be had."""
    place = tmp_path / "made" / "small" / "private"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_full_disk_ends_the_job_and_more_room_completes_it(
    tmp_path: Path, work: Work, small: Path, workers: int
) -> None:
    texts = [f"{n} {text}" for n, text in enumerate(texts_of(3, 400) * 3)]
    write(tmp_path / "web", texts, 2)
    config = {**CONFIG, "how": {"workers": workers, "chunk_chars": 60_000}}
    with pytest.raises(OSError, match="No space left") as caught:
        work(curate.JOB, config, name="small")
    assert disk.is_full(caught.value)
    assert not list(small.rglob("*.json")) or list(small.rglob("*.arrow"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
    out, _ = work(curate.JOB, config, name="small")
    expected, _ = work(curate.JOB, config, name="roomy")
    assert [(out / name).read_bytes() for name in FILES] == [(expected / name).read_bytes() for name in FILES]


def test_a_disk_that_is_full_now_and_then(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any of the moments at which a file is brought to the disk."""
    write(tmp_path / "web", texts_of(4, 50), 1)
    config = {**CONFIG, "how": {"workers": 1, "chunk_chars": 2000}}
    expected, _ = work(curate.JOB, config, name="whole")
    left, sync = [0], disk.sync

    def mortal(path: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(runner.disk, "sync", mortal)
    for attempt, room in enumerate((3, 7, 1, 25, 11, 10**9)):
        left[0] = room
        try:
            out, _ = work(curate.JOB, config, name="mortal")
        except OSError:
            assert not list((tmp_path / "made" / "mortal" / "private").rglob("*.[0-9]*")), attempt
    assert [(out / name).read_bytes() for name in FILES] == [(expected / name).read_bytes() for name in FILES]


def test_no_record_stands_before_what_it_tells_of(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is brought to the disk before it gets its name, the folder before the record."""
    calls: list[tuple[str, str]] = []
    sync, replace = disk.sync, os.replace
    monkeypatch.setattr(runner.disk, "sync", lambda path: (calls.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("name", Path(b).name)), replace(a, b)))
    write(tmp_path / "web", texts_of(4, 20), 1)
    work(curate.JOB, {**CONFIG, "how": {"workers": 1}})
    names = [call for call in calls if call[0] == "name" and "." in call[1] and call[1][:6] == "000000"]
    assert len(names) > 6
    for kind, name in names:
        at = calls.index((kind, name))
        assert calls[at - 1][0] == "sync"
        assert calls[at - 1][1].startswith(name + ".")
        if name.endswith(".json"):
            assert calls[at - 2] == ("sync", "0") or calls[at - 2][1].isdigit()


def test_what_killed_workers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for name in ("000000.arrow.4711", "000000.number.npy.12", "000000.arrow"):
        (tmp_path / "0" / name).touch()
    runner.Runner(tmp_path, [], 1, lambda stage, done: None)
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["000000.arrow"]


def test_errors_come_home_from_workers() -> None:
    """`copy` makes them anew as a pool does."""
    error = MissingExtra("lingua", extra="web", purpose="Labelling")
    again = copy.copy(error)
    assert (str(again), again.mend, type(again)) == (str(error), error.mend, MissingExtra)


RECIPE = """
version: 1
name: killed
seed: 0
jobs:
  corpus:
    kind: curate
    preset: fineweb2
    operators: [{kind: repeated-paragraphs, min_left: 0.5}]
    heldout: 0.1
    sources: [{name: web, path: "web/*.jsonl", licence: mine}]
    how: {workers: 2, chunk_chars: 25000}
"""


def curated(folder: Path, store: str, seconds: float | None = None) -> bool:
    """`shunter run`. False: it was killed after so many seconds, and its workers ended by themselves."""
    command = [
        sys.executable,
        "-m",
        "shunter.cli.main",
        "run",
        str(folder / "recipe.yaml"),
        "--store",
        store,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, "workers outlive the process that they work for"
        return False
    assert process.returncode == 0, told
    return True


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_points_nothing_is_doubled_or_lost(tmp_path: Path, kills: int) -> None:
    texts = [f"{n} {text}" for n, text in enumerate(texts_of(7, 250) * 3)]
    write(tmp_path / "web", texts, 3)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    begin = time.perf_counter()
    assert curated(tmp_path, str(tmp_path / "whole"))
    whole = time.perf_counter() - begin
    draw = random.Random(kills)
    struck = 0
    for _ in range(4 * kills):
        struck += not curated(tmp_path, str(tmp_path / "killed"), draw.uniform(0.3, 0.95) * whole)
        if struck == kills:
            break
        for artefact in Store(tmp_path / "killed").all():  # it came through: begin again
            subprocess.run(["rm", "-r", str(artefact.path)], check=True)
    assert struck == kills
    assert curated(tmp_path, str(tmp_path / "killed"))
    made = [Store(tmp_path / name).all()[0] for name in ("whole", "killed")]
    assert made[0].manifest.content == made[1].manifest.content
    kept = [each.id for split in ("train", "heldout") for each in corpus.texts(made[1].path / split)]
    told = kept + [record["id"] for record in lines(made[1].path / "dropped.jsonl")]
    assert sorted(told) == sorted(f"web:{n}" for n in range(len(texts)))
    assert kept


def test_what_a_corpus_takes_of_the_disk_goes_with_its_text_and_stages(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.GZ"
    for path in (plain, packed):
        path.write_bytes(b"x" * 1000)

    def needed(path: Path, **more: Any) -> int:
        return curate.JOB.disk_bytes(
            curate.CurateConfig(kind="curate", sources=[{"path": str(path), "licence": "x"}], **more),
            tmp_path,
        )

    assert (needed(plain), needed(packed)) == (1000, 4000)
    chain = curate.CurateConfig(
        kind="curate", sources=[{"path": str(plain), "licence": "x"}], preset="fineweb2"
    ).chain
    assert needed(plain, preset="fineweb2") == (1 + 2 * len(stages(chain))) * 1000
