"""The drills on larger recipes: minutes each."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from shunter.record.points import POINTS
from tests.drills.conftest import ROOT, Passage, Stage, Zygote, faults, uninterrupted

pytestmark = pytest.mark.long

KILLED = -signal.SIGKILL


def staged(name: str, zygote: Zygote, folder: Path) -> Stage:
    """A copy of the recipe with its data, run to its end once."""
    shutil.copytree(ROOT / "recipes" / "data", folder / "data")
    shutil.copy(ROOT / "recipes" / f"{name}.yaml", folder)
    return uninterrupted(zygote, folder / f"{name}.yaml", folder)


@pytest.fixture(scope="module")
def drill(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return staged("drill", zygote, tmp_path_factory.mktemp("drill"))


@pytest.fixture(scope="module")
def quickstart(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return staged("quickstart", zygote, tmp_path_factory.mktemp("quickstart"))


def killed_at(stage: Stage, passages: list[Passage], store: Path) -> None:
    for fault in faults(passages):
        stage.strike(store, "kill", KILLED, **fault)
    stage.finish(store)
    shutil.rmtree(store)


def test_the_drill_recipe_passes_every_point(drill: Stage) -> None:
    assert {point for point, _, _ in drill.passages} == set(POINTS) - {"pipeline.action"}


def test_killed_at_every_publication_point(drill: Stage, tmp_path: Path) -> None:
    chosen = [passage for passage in drill.passages if not passage[0].startswith(("train.", "checkpoint."))]
    killed_at(drill, chosen, tmp_path / "store")


def test_killed_at_every_point_of_the_second_checkpoint(drill: Stage, tmp_path: Path) -> None:
    chosen = [each for each in drill.passages if each[0].startswith("checkpoint.") and each[2] == 40]
    assert len(chosen) == 10, "five points in each of two trainings"
    killed_at(drill, chosen, tmp_path / "store")


@pytest.mark.parametrize("seed", range(3))
def test_ten_random_kills(seed: int, drill: Stage, tmp_path: Path) -> None:
    chosen = sorted(random.Random(seed).sample(range(len(drill.passages)), 10))
    killed_at(drill, [drill.passages[number] for number in chosen], tmp_path / "store")


@pytest.mark.parametrize("seed", range(3))
def test_the_quickstart_killed_three_times(seed: int, quickstart: Stage, tmp_path: Path) -> None:
    chosen = sorted(random.Random(seed).sample(range(len(quickstart.passages)), 3))
    killed_at(quickstart, [quickstart.passages[number] for number in chosen], tmp_path / "store")
