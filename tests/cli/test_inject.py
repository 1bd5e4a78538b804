"""`shunter inject`: tells what came of a fault, by its exit code too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.launch import drill, faults
from shunter.record.points import POINTS

# Jobs that need no torch: an attempt takes a second.
RECIPE = """\
version: 1
name: small
jobs:
  corpus: {kind: curate, sources: [{path: texts/*.txt}], heldout: 0.2}
  tokenizer: {kind: tokenizer, corpus: corpus, vocab_size: 280}
  rows: {kind: tokens, corpus: corpus, tokenizer: tokenizer, row_length: 32}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe over a few texts."""
    (tmp_path / "texts").mkdir()
    for number in range(12):
        text = f"The {number}th of twelve texts says little, {number} times. " * (number + 3)
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_kill_is_survived_and_compared(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "recipe.yaml", "--store", "whole"]) == 0
    capfd.readouterr()
    fault = ["--point", "publish.rename", "--job", "tokenizer"]
    assert cli.main(["inject", "recipe.yaml", *fault, "--compare", "whole", "--store", "drill"]) == 0
    out = capfd.readouterr().out
    assert "kill at publish.rename, of tokenizer: the run was ended by SIGKILL" in out
    assert "corpus     1 attempt    equal to the uninterrupted run" in out
    assert "tokenizer  2 attempts   equal to the uninterrupted run" in out
    assert out.endswith("1 of 1 faults struck; the recipe ended well\n")

    # A store in which one file differs: no longer equal, and the exit code says so.
    (manifest,) = (folder / "whole" / "artefacts").glob("rows-*/manifest.json")
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**data, "content": "0" * 64}))
    again = [
        "inject",
        "recipe.yaml",
        "--point",
        "job.done",
        "--compare",
        "whole",
        "--store",
        "drill",
        "--json",
    ]
    assert cli.main(again) == 1
    captured = capfd.readouterr()
    data = json.loads(captured.out)
    assert data["survived"] is False
    assert data["equal"] == {"corpus": True, "tokenizer": True, "rows": False}
    assert data["attempts"] == [
        {
            "fault": {"kind": "kill", "point": "job.done", "hit": 1, "probability": 1.0, "seconds": 0.0},
            "struck": False,
            "ended": "went on to its end",
        }
    ]
    assert "kill at job.done: not reached, the run went on to its end" in captured.err


def test_a_store_without_the_run_cannot_be_compared_with(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["inject", "recipe.yaml", "--point", "run.begin", "--store", "a", "--compare", "b"]
    assert cli.main(command) == 2
    assert "error: b: corpus was not made there with this configuration" in capfd.readouterr().err


def test_overrides_and_a_recipe_that_fails_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["inject", "recipe.yaml", "jobs.rows.row_length=1000000000000", "--point", "train.step"]
    assert cli.main(command) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: override 'jobs.rows.row_length")
    assert captured.err.count("error:") == 1
    assert "not reached" not in captured.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "no recipe is given"),
        (["recipe.yaml", "--kind", "crash"], "kind"),
        (["recipe.yaml", "--point", "train.stop"], "did you mean 'train.step'?"),
        (
            ["recipe.yaml", "--kind", "truncate", "--point", "job.done"],
            "truncate works at checkpoint.shard only",
        ),
        (["recipe.yaml", "--kind", "nan", "--compare", "b"], "a step that is skipped changes the weights"),
        (["recipe.yaml", "--times", "0"], "--times"),
        (["none.yaml"], "error: none.yaml: file not found. Check the path.\n"),
    ],
)
def test_mistakes(options: list[str], sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inject", *options]) == 2
    captured = capfd.readouterr().err
    assert sentence in captured
    assert captured.startswith("error: ")
    assert captured.count("error: ") == 1
    assert "Traceback" not in captured


def test_a_torn_checkpoint_is_looked_at_after_a_kill() -> None:
    """Nobody reads a checkpoint without need. That it is then passed over: tests/drills."""
    (fault,) = faults.chosen("truncate", None, 40, "base", 1, 1, 20, 0)
    (kill,) = drill.follow_up(fault)
    assert (kill.kind, kill.point, kill.step, kill.job) == ("kill", "checkpoint.prune", 40, "base")
    assert drill.describe(fault) == (
        "truncate at checkpoint.shard, of base, step 40, then kill at checkpoint.prune"
    )
    assert drill.follow_up(faults.chosen("kill", "train.step", 3, None, 1, 1, 20, 0)[0]) == []


def test_the_list_names_every_point(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inject", "--list"]) == 0
    out = capfd.readouterr().out
    assert all(f"  {point} " in out for point in POINTS)
    assert cli.main(["inject", "--list", "--json"]) == 0
    data = json.loads(capfd.readouterr().out)
    assert data["points"] == POINTS
    assert set(data["kinds"]) == {"kill", "stop", "exception", "nan", "full-disk", "truncate", "slow"}
