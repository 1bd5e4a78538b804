"""The drill recipe, its trainings and tests shortened: every point of a training and some at random.

In `make test` test_kill.py stands for it, with a smaller recipe. The recipe as it stands, every point of
every job and the quickstart: test_long.py.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from shunter.record.points import POINTS
from tests.drills.conftest import ROOT, Stage, Zygote, faults, uninterrupted

KILLED = -signal.SIGKILL
STEPS, EVERY = 10, 4  # of each training
SHORTER = (
    "jobs.corpus.limit=60",
    "jobs.talks.arithmetic.limit=100",
    *(
        f"jobs.{job}.train.{key}={value}"
        for job in ("base", "chat")
        for key, value in (("steps", STEPS), ("warmup", 2))
    ),
    *(f"jobs.{job}.how.checkpoint_every={EVERY}" for job in ("base", "chat")),
    # Threads that wait for each other on cores that other tests want take most of the time.
    *(f"jobs.{job}.how.threads=1" for job in ("base", "chat")),
    "jobs.chat.how.checkpoint_async=true",  # its checkpoints are killed in their thread
    *(
        f"jobs.{job}.how.track=[]" for job in ("base", "chat")
    ),  # a second attempt would wait for the next second
    "jobs.scores.tasks.0.documents=3",
    "jobs.scores.tasks.1.items=5",
    "jobs.scores.tasks.2.items=5",
)


@pytest.fixture(scope="module")
def stage(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("short")
    (folder / "data").symlink_to(ROOT / "recipes" / "data")
    shutil.copy(ROOT / "recipes" / "drill.yaml", folder)
    return uninterrupted(zygote, folder / "drill.yaml", folder, SHORTER)


@pytest.mark.long
def test_killed_at_every_point_of_both_trainings_and_at_random(stage: Stage, tmp_path: Path) -> None:
    training = {point for point in POINTS if point.split(".")[0] in ("train", "checkpoint")}
    # Between two checkpoints; for the points of checkpoints, in the second one.
    steps = {point: 2 * EVERY if point.startswith("checkpoint.") else EVERY + 2 for point in training}
    chosen = {
        number
        for number, (point, _, step) in enumerate(stage.passages)
        if point in training and step == steps[point]
    }
    assert {stage.passages[number][:2] for number in chosen} == {
        (point, job) for point in training for job in ("base", "chat")
    }
    # A step is the same code in both; what differs is that the second's checkpoints are written beside them.
    same = {(point, "chat") for point in ("train.step", "train.update")}
    chosen = {number for number in chosen if stage.passages[number][:2] not in same}
    chosen |= set(random.Random(0).sample(range(len(stage.passages)), 3))
    for fault in faults([stage.passages[number] for number in sorted(chosen)]):
        stage.strike(tmp_path / "store", "kill", KILLED, **fault)
    stage.finish(tmp_path / "store")
