"""mix and by-site, killed at random points again and again, end with the same corpus, and do no unit twice.

A kill is an error that nothing handles, at a moment at which documents are read or a file is brought to the
disk; what was half done stays, as it would. Ten kills of the real process take long.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shunter.data import corpus, units
from shunter.jobs import mix, sites
from shunter.recipe import disk
from shunter.recipe.job import Stopped
from shunter.recipe.store import Store
from tests.jobs.conftest import Still, Work

ROOT = Path(__file__).resolve().parents[2]


def made(folder: Path, source: str, count: int, seed: int) -> Path:
    """A corpus in several row groups, of a few sites, a tenth held out."""
    draw = np.random.default_rng(seed)
    number = 0
    for split, size in (("train", count), ("heldout", count // 10)):
        writer = corpus.Writer(folder / split, {"url": pa.string(), "tier": pa.string()})
        for _ in range(size):
            url = f"https://{draw.integers(0, 9)}.example/{number}" if draw.random() < 0.9 else ""
            text = " ".join(
                draw.choice(["some", "words", "that", "stand", "here"], int(draw.integers(3, 60)))
            )
            writer.write(f"{source}:{number}", source, number, text, url, str(draw.choice(["1", "3"])))
            number += 1
        writer.close()
    (folder / "summary.json").write_text(json.dumps({"sources": {source: {"licence": "mine"}}}))
    return folder


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(corpus, "BATCH_BYTES", 6000)
    monkeypatch.setattr(units, "UNIT_BYTES", 3000)  # encoded, such words take less
    monkeypatch.setattr(sites, "CHARS", 4000)
    return [made(tmp_path / name, name, 120, number) for number, name in enumerate(("one", "two"))]


MIX: dict[str, Any] = {"corpora": ["a", "b"], "weights": {"one": 1, "two": 2}, "budget": 9000, "epochs": 2}
SITES: dict[str, Any] = {"corpus": "c", "chars": 500}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in disk.files(folder)}


class _Killed(BaseException):
    """Stands for a kill: no handler expects it."""


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Killed when as many batches more have been read, or files brought to the disk."""
    left, sync, batches = [10**9], disk.sync, units.Unit.batches

    def count() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise _Killed

    def synced(path: Path) -> None:
        count()
        sync(path)

    def read(unit: units.Unit, *given: Any, **named: Any) -> Iterator[pa.RecordBatch]:
        for batch in batches(unit, *given, **named):
            count()
            yield batch

    monkeypatch.setattr(units.disk, "sync", synced)
    monkeypatch.setattr(units.Unit, "batches", read)
    monkeypatch.setattr(
        units.disk, "remove", lambda path, remove=disk.remove: remove(path) if left[0] > 0 else None
    )
    return left


@pytest.mark.parametrize("job", [mix.JOB, sites.JOB], ids=["mix", "by-site"])
def test_killed_again_and_again(
    tmp_path: Path, work: Work, corpora: list[Path], mortal: list[int], job: Any
) -> None:
    config, inputs = (MIX, {"corpora": corpora}) if job is mix.JOB else (SITES, {"corpus": corpora[0]})
    expected, metrics = work(job, config, inputs=inputs, name="whole")
    whole = [path.name for path in (tmp_path / "made" / "whole" / "private").rglob("record.json")]
    assert len(whole) >= 12, "some units"
    draw = random.Random(0)
    for attempt in range(60):
        mortal[0] = draw.randrange(3, 25)
        disk.remove(tmp_path / "made" / "killed" / "out")  # as the next attempt does
        try:
            out, again = work(job, config, inputs=inputs, name="killed")
        except _Killed:
            continue
        assert attempt > 2
        assert content(out) == content(expected)
        assert again == metrics
        return
    raise AssertionError("never came through: what was done is done again")


@pytest.mark.parametrize("job", [mix.JOB, sites.JOB], ids=["mix", "by-site"])
def test_stopped_at_any_moment(tmp_path: Path, work: Work, corpora: list[Path], job: Any) -> None:
    config, inputs = (MIX, {"corpora": corpora}) if job is mix.JOB else (SITES, {"corpus": corpora[0]})
    expected, _ = work(job, config, inputs=inputs, name="whole")
    stops = 0
    for _ in range(60):
        disk.remove(tmp_path / "made" / "stopped" / "out")
        try:
            looks = 4 if job is mix.JOB else 30  # at each document that it writes
            out, _ = work(job, config, inputs=inputs, name="stopped", control=Still(stop_after=looks))
        except Stopped:
            stops += 1
        else:
            break
    assert stops > 2
    assert content(out) == content(expected)


def test_units_change_nothing_but_files(
    tmp_path: Path, work: Work, corpora: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are those that one unit makes."""
    for job, config, inputs in (
        (mix.JOB, MIX, {"corpora": corpora}),
        (sites.JOB, SITES, {"corpus": corpora[0]}),
    ):
        found = []
        for name in ("many", "one"):
            with pytest.MonkeyPatch.context() as patch:
                if name == "one":
                    patch.setattr(units, "UNIT_BYTES", 1 << 30)
                    patch.setattr(sites, "CHARS", 1 << 30)
                out, _ = work(job, config, inputs=inputs, name=f"{job.kind}-{name}")
            files = [path.name for path in sorted((out / "train").glob("*.parquet"))]
            assert files == [f"{number:05}.parquet" for number in range(len(files))]
            assert (len(files) > 1) == (name == "many") or job is mix.JOB
            rows = [list(corpus.rows(out / split)) for split in ("train", "heldout")]
            found.append((rows, (out / "dropped.jsonl").read_bytes(), (out / "summary.json").read_bytes()))
        assert found[0] == found[1]


RECIPE = """
version: 1
name: killed
seed: 0
jobs:
  one: {kind: curate, sources: [{name: one, path: one.jsonl, url: url, licence: mine}], heldout: 0.1,
        operators: [{kind: mask-personal}]}
  two: {kind: curate, sources: [{name: two, path: two.jsonl, url: url, licence: mine}], heldout: 0.1,
        operators: [{kind: mask-personal}]}
  mixture: {kind: mix, corpora: [one, two], weights: {one: 1, two: 2}, budget: 2000000}
  ordered: {kind: by-site, corpus: one, chars: 2000}
"""


def ran(folder: Path, store: str, seconds: float | None = None) -> bool:
    """`shunter run`; False: it was killed after so many seconds."""
    command = [sys.executable, "-m", "shunter.cli.main", "run", str(folder / "recipe.yaml"), "--store", store]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    assert process.returncode == 0, told
    return True


@pytest.mark.long
def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), int(n))) for n in draw.integers(2, 9, 2000)]
    for name in ("one", "two"):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(12_000):
                text = " ".join(words[n] for n in draw.integers(0, len(words), 200).tolist())
                url = f"https://{number % 97}.example/{number}"
                file.write(json.dumps({"text": text, "url": url}) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    begin = time.perf_counter()
    assert ran(tmp_path, str(tmp_path / "whole"))
    whole = time.perf_counter() - begin
    struck, chance = 0, random.Random(1)
    while struck < 10:
        if ran(tmp_path, str(tmp_path / "killed"), chance.uniform(0.1, 0.9) * whole):
            for artefact in Store(tmp_path / "killed").all():  # it came through: begin again
                subprocess.run(["rm", "-r", str(artefact.path)], check=True)
        else:
            struck += 1
    assert ran(tmp_path, str(tmp_path / "killed"))
    found = [
        {each.name: each.manifest.content for each in Store(tmp_path / n).all()} for n in ("whole", "killed")
    ]
    assert found[0] == found[1]
