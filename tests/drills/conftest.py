"""The zygote, an uninterrupted run, and what each drill looks at afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shunter.recipe.artefact import Artefact
from shunter.recipe.store import Store
from shunter.record import events
from tests import warm
from tests.drills import tiny

ROOT = Path(__file__).resolve().parents[2]


Passage = tuple[str, str | None, int | None]  # point, job, step


class Zygote:
    """`shunter` commands in processes that begin warm."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "output.txt"

    def shunter(
        self,
        *args: str,
        faults: Sequence[dict[str, Any]] = (),
        watch: dict[str, Any] | None = None,
    ) -> tuple[int, str]:
        """Exit code (-N: signal N) and what was printed."""
        injected = {"SHUNTER_INJECT": json.dumps({"faults": list(faults)})} if faults else {}
        command = [sys.executable, "-m", "tests.drills.zygote", json.dumps(args), json.dumps(watch)]
        with self.output.open("wb") as output:
            process = warm.popen(
                command,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **injected},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return process.wait(), self.output.read_text(encoding="utf-8", errors="replace")


@dataclass
class Stage:
    """A recipe, its uninterrupted run, and the passages of points in it as (point, job, step)."""

    zygote: Zygote
    recipe: Path
    whole: Path  # a store with all artefacts
    prepared: Path  # a store in which all that comes before training is finished
    passages: list[Passage]
    overrides: Sequence[str] = ()
    content: dict[str, str] = field(default_factory=dict)

    def run(self, store: Path, *faults: dict[str, Any], **more: Any) -> tuple[int, str]:
        """`shunter run` with these faults."""
        return self.zygote.shunter(
            "run", str(self.recipe), *self.overrides, "--store", str(store), faults=faults, **more
        )

    def strike(self, store: Path, kind: str, code: int, **where: Any) -> str:
        """Run with one fault, which must strike and end the run with `code`; nothing broken is visible."""
        ended, output = self.run(store, {"kind": kind, **where})
        assert f"injected {kind} at {where['point']}" in output, f"not reached: {where}\n{output[-2000:]}"
        assert ended == code, output[-2000:]
        sound(store)
        return output

    def finish(self, store: Path) -> dict[str, Artefact]:
        """The same command, undisturbed: every artefact is that of the uninterrupted run."""
        code, output = self.run(store)
        assert code == 0, output[-2000:]
        made = artefacts(store, self.recipe)
        different = [
            name
            for name, artefact in made.items()
            if artefact.type != "report" and artefact.content != self.content[name]
        ]
        assert not different, f"{different} differ from the uninterrupted run"
        for name, artefact in artefacts(self.whole, self.recipe).items():
            if artefact.type == "model":  # not by their digests only
                weights = [each / "model.safetensors" for each in (artefact.path, made[name].path)]
                assert weights[0].read_bytes() == weights[1].read_bytes()
                assert_ledger(made[name])
                told = [each.manifest.metrics for each in (artefact, made[name])]
                assert [timeless(each) for each in told] == [timeless(told[0])] * 2, "headline metrics"
                assert told[1]["tokens_per_second"] > 0 < told[1]["mfu"]
        assert list(Store(store).work.iterdir()) == [], "nothing is left behind"
        sound(store)
        return made


def timeless(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those that no clock had a part in."""
    return {
        name: value for name, value in metrics.items() if name not in ("tokens_per_second", "mfu", "account")
    }


def faults(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Passages as the places of faults that strike there."""
    named = [{"point": point, "job": job, "step": step} for point, job, step in passages]
    return [{key: value for key, value in fault.items() if value is not None} for fault in named]


def artefacts(store: Path, recipe: Path) -> dict[str, Artefact]:
    """The artefacts of the recipe's newest run, by job."""
    place = Store(store)
    jobs = place.run(recipe).data["jobs"]
    return {name: place.get(place.path / "artefacts" / job["artefact"]) for name, job in jobs.items()}


def sound(store: Path) -> None:
    """Every visible artefact is whole."""
    place = Store(store)
    assert place.damage() == []
    for artefact in place.all():
        assert place.verify(artefact) == []


def steps(artefact: Artefact) -> list[dict[str, Any]]:
    """The ledger of a training, repeated steps too."""
    return [
        event for event in events.read(artefact.path / "log" / "ledger.jsonl") if event["event"] == "step"
    ]


def assert_ledger(artefact: Artefact) -> None:
    """Each position of the data was learnt from once; what was redone saw the same rows and the same loss."""
    by_step: dict[int, dict[str, Any]] = {}
    for event in steps(artefact):
        same = {key: event[key] for key in ("position", "rows", "tokens", "loss", "grad_norm")}
        assert by_step.setdefault(event["step"], same) == same, "a repeated step differs"
    position = 0
    for number, step in enumerate(sorted(by_step)):
        assert step == number
        assert by_step[step]["position"][0] == position
        position = by_step[step]["position"][1]


def redone(artefact: Artefact, attempt: int) -> int:
    """The first step that this attempt took."""
    return min(event["step"] for event in steps(artefact) if event["attempt"] == attempt)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Zygote:
    return Zygote(tmp_path_factory.mktemp("zygote"))


def uninterrupted(zygote: Zygote, recipe: Path, folder: Path, overrides: Sequence[str] = ()) -> Stage:
    """Run the recipe once to its end, and note what it passes."""
    stage = Stage(zygote, recipe, folder / "whole", folder / "prepared", [], overrides)
    code, output = stage.run(stage.whole, watch={"record": str(folder / "passages.jsonl")})
    assert code == 0, output
    lines = (folder / "passages.jsonl").read_text().splitlines()
    stage.passages = [tuple(json.loads(line)) for line in lines]  # type: ignore[misc]
    made = artefacts(stage.whole, recipe)
    stage.content = {name: artefact.content for name, artefact in made.items()}
    return stage


@pytest.fixture(scope="session")
def stage(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("tiny")
    stage = uninterrupted(zygote, tiny.write(folder), folder)
    for last in ("rows", "talk-rows"):
        options = ("--store", str(stage.prepared), "--to", last)
        code, output = zygote.shunter("run", str(stage.recipe), *options)
        assert code == 0, output
    shutil.rmtree(stage.prepared / "runs")
    return stage


@pytest.fixture
def store(stage: Stage, tmp_path: Path) -> Path:
    """A store of its own, ready for the training."""
    place = tmp_path / "store"
    shutil.copytree(stage.prepared, place, symlinks=True)
    return place
