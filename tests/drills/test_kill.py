"""SIGKILL at every point: the same command continues, and the weights are those of an uninterrupted run."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from shunter.record.points import POINTS
from tests.drills import tiny
from tests.drills.conftest import Stage, faults, redone, steps

KILLED = -signal.SIGKILL
TRAINING = [point for point in POINTS if point.split(".")[0] in ("train", "checkpoint")]
PIPELINE = ["pipeline.action"]  # of jobs on several processes: tests/jobs/test_ranks.py
PUBLICATION = [point for point in POINTS if point not in TRAINING + PIPELINE]


def test_the_recipe_passes_every_point(stage: Stage) -> None:
    # Else the drills below would leave one out in silence.
    assert {point for point, _, _ in stage.passages} == set(POINTS) - set(PIPELINE)
    for job in tiny.JOBS:
        assert {point for point, at, _ in stage.passages if at == job} >= set(PUBLICATION) - {"run.begin"}
    for job in ("base", "chat"):
        assert {point for point, at, _ in stage.passages if at == job} >= set(TRAINING)


def test_killed_at_every_publication_point_of_every_job(stage: Stage, tmp_path: Path) -> None:
    passages = [passage for passage in stage.passages if passage[0] in PUBLICATION]
    assert len(passages) == 1 + (len(PUBLICATION) - 1) * len(tiny.JOBS)
    for fault in faults(passages):
        stage.strike(tmp_path / "store", "kill", KILLED, **fault)
    made = stage.finish(tmp_path / "store")
    # job.begin, job.done, publish.manifest and publish.rename cost an attempt each.
    assert {len(artefact.manifest.attempts) for artefact in made.values()} == {5}
    for name, last in tiny.STEPS.items():
        assert len(steps(made[name])) == last, "finished steps are not taken again to publish"


@pytest.mark.parametrize("point", TRAINING)
def test_killed_inside_a_training(point: str, stage: Stage, store: Path) -> None:
    # In the middle of the second stretch between checkpoints; for those of checkpoints, in the second one.
    at = {"base": 8, "chat": 6} if point.startswith("checkpoint.") else {"base": 6, "chat": 4}
    for job, step in at.items():
        stage.strike(store, "kill", KILLED, point=point, job=job, step=step)
    made = stage.finish(store)
    for job in at:
        saved = at[job] if point == "checkpoint.prune" else tiny.EVERY[job]
        assert [each["outcome"] for each in made[job].manifest.attempts] == ["killed", "done"]
        if saved < tiny.STEPS[job]:
            assert redone(made[job], attempt=2) == saved, "goes on from the newest checkpoint"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 10))])
def test_ten_random_kills(seed: int, stage: Stage, tmp_path: Path) -> None:
    draw = random.Random(seed)
    chosen = sorted(draw.sample(range(len(stage.passages)), 10))
    for fault in faults([stage.passages[number] for number in chosen]):
        stage.strike(tmp_path / "store", "kill", KILLED, **fault)
    stage.finish(tmp_path / "store")


def test_killed_again_and_again(stage: Stage, store: Path) -> None:
    # Each attempt gets a little further than the one before: a run that is never left in peace still ends.
    killed = range(2, tiny.STEPS["base"], 3)
    for step in killed:
        stage.strike(store, "kill", KILLED, point="train.update", job="base", step=step)
    made = stage.finish(store)
    assert [each["outcome"] for each in made["base"].manifest.attempts] == ["killed"] * len(killed) + ["done"]
