"""A request to stop, an error, a loss that is no number, a torn checkpoint, a full disk: what each costs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter.recipe.store import Store
from shunter.record import events
from tests.drills import tiny
from tests.drills.conftest import Stage, Zygote, artefacts, redone, sound, steps

STOPPED, FULL, BUG = 143, 2, 1


def test_sigterm_saves_and_loses_no_step(stage: Stage, store: Path) -> None:
    stage.strike(store, "stop", STOPPED, point="train.step", job="base", step=5)
    assert Store(store).run(stage.recipe).state == "stopped"
    made = stage.finish(store)
    assert [each["outcome"] for each in made["base"].manifest.attempts] == ["stopped", "done"]
    taken = [event["step"] for event in steps(made["base"])]
    assert taken == list(range(tiny.STEPS["base"])), "step 5 ended, was saved, and no step was taken twice"


@pytest.mark.parametrize("point", ["job.begin", "publish.rename"])
def test_sigterm_outside_of_steps(point: str, stage: Stage, tmp_path: Path) -> None:
    # What has no state between steps ends its job first, or leaves it for the next attempt.
    stage.strike(tmp_path / "store", "stop", STOPPED, point=point, job="tokenizer")
    stage.finish(tmp_path / "store")


def test_an_error_nobody_expects(stage: Stage, store: Path) -> None:
    output = stage.strike(store, "exception", BUG, point="train.update", job="base", step=9)
    assert "Injected: injected at train.update" in output
    made = stage.finish(store)
    assert made["base"].manifest.attempts[0]["error"] == "Injected: injected at train.update"
    assert redone(made["base"], attempt=2) == 8


def test_a_loss_that_is_no_number_is_skipped(stage: Stage, store: Path, tmp_path: Path) -> None:
    nan = {"kind": "nan", "point": "train.step", "job": "base", "step": 5}
    code, output = stage.run(store, nan)
    assert code == 0, output
    made = artefacts(store, stage.recipe)
    log = events.read(made["base"].path / "log" / "events.jsonl")
    (skip,) = [event for event in log if event["event"] == "skip"]
    (step,) = [event for event in steps(made["base"]) if event["step"] == 5]
    assert skip["step"] == 5
    assert skip["loss"] == step["loss"] == "nan"
    assert len(skip["rows"]) == 4, "the rows of the step are named"
    assert all(documents for documents in skip["documents"].values())
    assert made["base"].manifest.metrics["skipped"] == 1
    assert made["base"].content != stage.content["base"], "a step fewer"

    # A skipped step is a part of the state: killed after it, the run ends where it would have ended.
    other = tmp_path / "other"
    shutil.copytree(stage.prepared, other, symlinks=True)
    kill = {"kind": "kill", "point": "train.step", "job": "base", "step": 10}
    assert stage.run(other, nan, kill)[0] == -9
    assert stage.run(other)[0] == 0
    again = artefacts(other, stage.recipe)
    assert again["base"].content == made["base"].content
    assert again["chat"].content == made["chat"].content
    assert again["base"].manifest.metrics["skipped"] == 1


def test_a_torn_checkpoint_is_passed_over(stage: Stage, store: Path) -> None:
    # The shard of step 8 loses its half behind the back of the one who wrote it; then the process dies.
    torn = {"kind": "truncate", "point": "checkpoint.shard", "job": "base", "step": 8}
    kill = {"kind": "kill", "point": "train.step", "job": "base", "step": 11}
    code, output = stage.run(store, torn, kill)
    assert code == -9, output
    assert "injected truncate" in output
    made = stage.finish(store)
    assert redone(made["base"], attempt=2) == 4, "back to the checkpoint before"
    log = events.read(made["base"].path / "log" / "events.jsonl")
    (problem,) = [event for event in log if event["event"] == "problem"]
    assert "step-00000008" in problem["problem"]
    assert ".safetensors has" in problem["problem"]


def test_every_checkpoint_torn_means_from_the_start(stage: Stage, store: Path) -> None:
    torn = [{"kind": "truncate", "point": "checkpoint.shard", "step": step} for step in (4, 8)]
    kill = {"kind": "kill", "point": "train.step", "job": "base", "step": 9}
    assert stage.run(store, *torn, kill)[0] == -9
    made = stage.finish(store)
    assert redone(made["base"], attempt=2) == 0


@pytest.mark.parametrize("point", ["checkpoint.shard", "checkpoint.rename", "job.done", "publish.manifest"])
def test_no_space_is_one_line_and_costs_nothing(point: str, stage: Stage, store: Path) -> None:
    output = stage.strike(store, "full-disk", FULL, point=point, job="base")
    assert f"error: {store}: the disk is full. Free some space" in output
    assert "Traceback" not in output
    assert all(artefact.name != "base" for artefact in Store(store).all())
    stage.finish(store)


@pytest.fixture
def small_disk(tmp_path: Path, zygote: Zygote) -> Iterator[Path]:
    """A file system of 100 MB: shunter wants 50 free to begin."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root; the injected full disk is tried above")
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("point", "visible"),
    [("checkpoint.reserve", False), ("publish.manifest", False), ("publish.rename", True)],
)
def test_a_really_full_disk(point: str, visible: bool, stage: Stage, small_disk: Path) -> None:
    store = small_disk / "store"
    shutil.copytree(stage.prepared, store, symlinks=True)
    code, output = stage.run(store, watch={"fill": str(small_disk), "point": point, "job": "base"})
    assert code == FULL, output
    assert "the disk is full. Free some space" in output
    assert "Traceback" not in output
    sound(store)
    # Renaming needs no space: then the artefact is whole, and only the record of the run is behind.
    assert any(artefact.name == "base" for artefact in Store(store).all()) == visible
    (small_disk / "ballast").unlink()
    stage.finish(store)


def test_a_disk_that_fills_up_in_the_midst_of_each_job(stage: Stage, small_disk: Path) -> None:
    # Half of what a job will write is free when it begins: whatever library writes the file in which it
    # ends (Parquet, token files, tokenizer.json, safetensors, HTML), it is one line, and nothing is lost.
    store = small_disk / "store"
    for name, artefact in artefacts(stage.whole, stage.recipe).items():
        half = sum(file.bytes for file in artefact.manifest.files) // 2
        watch = {"fill": str(small_disk), "point": "job.begin", "job": name, "leave": half}
        code, output = stage.run(store, watch=watch)
        assert code == FULL, f"{name}: {output}"
        assert "the disk is full. Free some space" in output
        assert "Traceback" not in output
        (small_disk / "ballast").unlink()
        sound(store)
        assert name not in {artefact.name for artefact in Store(store).all()}
    stage.finish(store)
