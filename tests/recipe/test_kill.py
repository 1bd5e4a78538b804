"""Killed at any point, the same command continues: finished jobs are reused, nothing broken is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.recipe.attempt import read_attempts
from shunter.recipe.graph import load_recipe
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from shunter.record import events
from shunter.record.points import POINTS
from tests.recipe.fakes import KINDS, contents, fault, write

ROOT = Path(__file__).resolve().parents[2]
# Points of the run itself; those of training are drilled where training is.
OURS = [point for point in POINTS if point.split(".")[0] in ("run", "job", "publish")]


def start(recipe: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    """The fake kinds' runner in a process of its own."""
    command = [sys.executable, "-m", "tests.recipe.fakes", str(recipe), str(store), *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def run(recipe: Path, store: Path, *options: str) -> tuple[int, str, str]:
    process = start(recipe, store, *options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Contents of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return contents(run_graph(load_recipe(write(folder), [], KINDS), Store(folder / "store"), quiet=True))


@pytest.mark.parametrize(
    "spec", [*(f"{p}:base" if p != "run.begin" else p for p in OURS), "train.step:base:3"]
)
def test_killed_at_a_point(spec: str, whole: dict[str, str], tmp_path: Path) -> None:
    recipe, place = write(tmp_path), tmp_path / "store"
    code, _, err = run(recipe, place, "--kill", spec)
    assert code == -9, err
    store = Store(place)
    assert all(store.verify(artefact) == [] for artefact in store.all())
    assert store.damage() == []
    before = {artefact.name: artefact.path.stat().st_mtime_ns for artefact in store.all()}
    expected = {"run.begin": set(), "publish.done:base": {"corpus", "base"}}.get(spec, {"corpus"})
    assert set(before) == expected
    assert store.run("chain").state == "killed"

    made = run_graph(load_recipe(recipe, [], KINDS), store, quiet=True)
    assert contents(made) == whole
    assert all(made[name].path.stat().st_mtime_ns == at for name, at in before.items()), "made twice"
    assert list(store.work.iterdir()) == [], "work and staging folders are gone"
    assert len(store.runs()) == 1, "the same command continues the same run"
    record = store.run("chain")
    assert record.state == "done"
    assert record.data["sessions"] == 2
    outcomes = [attempt["outcome"] for attempt in made["base"].manifest.attempts]
    continued = spec not in ("run.begin", "publish.done:base")
    assert outcomes == (["killed", "done"] if continued else ["done"])
    log = events.read(made["base"].path / "log" / "events.jsonl")
    assert {event["attempt"] for event in log} == ({1, 2} if continued else {1})
    if spec == "train.step:base:3":
        assert made["base"].manifest.metrics["first"] == 3, "work is handed to the next attempt"


def test_stale_staging_is_not_published(tmp_path: Path, whole: dict[str, str]) -> None:
    recipe, place = write(tmp_path), tmp_path / "store"
    run(recipe, place, "--kill", "publish.rename:base")
    (work,) = Store(place).work.iterdir()
    assert (work / "out" / "manifest.json").exists()
    (work / "out" / "stale.txt").write_text("from the killed attempt")
    made = run_graph(load_recipe(recipe, [], KINDS), Store(place), quiet=True)
    assert not (made["base"].path / "stale.txt").exists()
    assert contents(made) == whole


def test_a_killed_redo_is_carried_through_once(tmp_path: Path) -> None:
    recipe, place = write(tmp_path), tmp_path / "store"
    graph = load_recipe(recipe, [], KINDS)
    first = run_graph(graph, Store(place), quiet=True)
    # Killed in the job after the one that was made again.
    assert run(recipe, place, "--redo", "base", "--redo", "scores", "--kill", "job.begin:scores")[0] == -9
    made = run_graph(graph, Store(place), redo=["base", "scores"], quiet=True)
    assert made["base"].path.name == f"{first['base'].path.name}-r2", "not made a third time"
    assert made["scores"].path.name == f"{first['scores'].path.name}-r2"
    assert len(Store(place).all()) == 5
    # Once it is through, the same command begins anew.
    again = run_graph(graph, Store(place), redo=["base"], quiet=True)
    assert again["base"].path.name.endswith("-r3")


@pytest.mark.parametrize(
    "spec", ["job.begin:base", "job.done:base", "publish.manifest:base", "publish.rename:base"]
)
def test_a_full_disk_publishes_nothing_and_can_be_continued(
    spec: str, whole: dict[str, str], tmp_path: Path
) -> None:
    recipe, place = write(tmp_path), tmp_path / "store"
    code, _, err = run(recipe, place, "--full", spec)
    assert code == 2
    assert err.startswith(f"error: {place}: the disk is full. Free some space")
    assert "Traceback" not in err
    store = Store(place)
    assert [artefact.name for artefact in store.all()] == ["corpus"]
    (work,) = store.work.iterdir()
    assert not (work / "out").exists(), "the space of what was staged is given back"
    assert read_attempts(work)[-1]["outcome"] == "failed"
    assert store.run("chain").state == "failed"
    assert contents(run_graph(load_recipe(recipe, [], KINDS), store, quiet=True)) == whole


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter.recipe import preflight

    monkeypatch.setattr(preflight, "MIN_FREE", 0)
    recipe = write(
        tmp_path,
        "version: 1\nname: big\njobs:\n  a: {kind: source, text: x}\n  b: {kind: source, files: [big]}\n",
    )
    (tmp_path / "big").write_bytes(b"x" * 900_000)
    ballast = small_disk / "ballast"
    store = Store(small_disk / "store")
    store.create()
    ballast.write_bytes(b"0" * 200_000)
    graph = load_recipe(recipe, [], KINDS)
    with pytest.raises(ShunterError, match="the disk is full"):
        run_graph(graph, store, quiet=True)
    assert [artefact.name for artefact in store.all()] == ["a"]
    assert store.damage() == []
    ballast.unlink()
    made = run_graph(graph, store, quiet=True)
    assert store.verify(made["b"]) == []


def test_not_enough_disk_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = type(KINDS["train"])
    monkeypatch.setattr(train, "disk_bytes", lambda self, config, base: 10**18, raising=False)
    store = Store(tmp_path / "store")
    with pytest.raises(ShunterError, match=r"not enough disk: about 1000000\.0 TB are needed"):
        run_graph(load_recipe(write(tmp_path), [], KINDS), store, quiet=True)
    assert store.all() == []
    assert store.runs() == []


def test_two_runners_on_one_job(tmp_path: Path, whole: dict[str, str]) -> None:
    recipe, place = write(tmp_path), tmp_path / "store"
    first = start(recipe, place, "--wait", "train.step:base:2")
    assert first.stdout is not None
    assert first.stdin is not None
    while "at train.step" not in first.stdout.readline():
        pass
    code, _, err = run(recipe, place)
    assert code == 2
    assert err == (
        f"error: base is being made by process {first.pid}. "
        "Wait for it (`shunter watch` shows it) and run the same command again.\n"
    )
    assert Store(place).run("chain").state == "running", "the second did not take the run away"
    first.stdin.write("\n")
    first.communicate(timeout=60)
    assert first.returncode == 0
    made = run_graph(load_recipe(recipe, [], KINDS), Store(place), quiet=True)
    assert contents(made) == whole
    assert all(len(artefact.manifest.attempts) == 1 for artefact in made.values())


@pytest.mark.parametrize(("number", "code"), [("INT", 130), ("TERM", 143)])
def test_a_signal_saves_and_stops(number: str, code: int, tmp_path: Path, whole: dict[str, str]) -> None:
    import signal

    recipe, place = write(tmp_path), tmp_path / "store"
    process = start(recipe, place, "--wait", "train.step:base:2")
    assert process.stdout is not None
    while "at train.step" not in process.stdout.readline():
        pass
    process.send_signal(getattr(signal, f"SIG{number}"))
    _, err = process.communicate("\n", timeout=60)
    assert process.returncode == code, err
    assert "stopping" in err
    store = Store(place)
    assert store.run("chain").state == "stopped"
    made = run_graph(load_recipe(recipe, [], KINDS), store, quiet=True)
    assert contents(made) == whole
    assert [each["outcome"] for each in made["base"].manifest.attempts] == ["stopped", "done"]


def test_every_point_of_a_run_is_reached_in_order(tmp_path: Path) -> None:
    from shunter.record import points

    seen: list[str] = []
    points.install(lambda point, facts: seen.append(point))
    try:
        run_graph(load_recipe(write(tmp_path), [], KINDS), Store(tmp_path / "s"), last="corpus", quiet=True)
    finally:
        points.install(None)
    assert seen == [
        "run.begin",
        "job.begin",
        "job.done",
        "publish.manifest",
        "publish.rename",
        "publish.done",
    ]
    assert set(seen) == set(OURS)


def test_the_hook_of_these_tests_really_strikes(tmp_path: Path) -> None:
    hook = fault("full", "job.begin:base")
    assert hook("job.begin", {"job": "corpus"}) is None
    with pytest.raises(OSError, match="No space"):
        hook("job.begin", {"job": "base"})
