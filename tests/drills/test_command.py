"""`shunter inject` on a real training, in processes of its own, as a person types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shunter.cli import main as cli
from tests.drills.conftest import ROOT, Stage


def inject(stage: Stage, store: Path, *options: str) -> str:
    command = [sys.executable, "-m", "shunter.cli.main", "inject", str(stage.recipe)]
    done = subprocess.run(
        [*command, *options, "--store", str(store), "--compare", str(stage.whole)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_kill_in_a_training(stage: Stage, store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Its runs are processes, which begin warm; docs/faults.md has them as a person starts them.
    words = ["--point", "train.update", "--job", "base", "--step", "6"]
    told = ["--store", str(store), "--compare", str(stage.whole)]
    assert cli.main(["inject", str(stage.recipe), *words, *told]) == 0
    out = capfd.readouterr().out
    assert "kill at train.update, of base, step 6: the run was ended by SIGKILL" in out
    assert "base       2 attempts   equal to the uninterrupted run" in out
    assert "chat       1 attempt    equal to the uninterrupted run" in out
    assert "scores     1 attempt    equal to the uninterrupted run" in out
    assert "DIFFERS" not in out


@pytest.mark.long
@pytest.mark.parametrize("kind", ["stop", "exception", "full-disk", "truncate"])
def test_the_other_kinds(kind: str, stage: Stage, store: Path) -> None:
    point = "checkpoint.shard" if kind == "truncate" else "train.step"
    assert "1 of 1 faults struck" in inject(stage, store, "--kind", kind, "--point", point, "--hit", "2")


@pytest.mark.long
def test_a_series_drawn_by_a_seed(stage: Stage, tmp_path: Path) -> None:
    out = inject(stage, tmp_path / "store", "--times", "6", "--seed", "5", "--steps", "6")
    assert "of 6 faults struck; the recipe ended well" in out
