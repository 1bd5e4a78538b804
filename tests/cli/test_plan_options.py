"""`shunter plan`: no option is ignored, and what stands in the tables stands in the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.plan.plan import Plan

ASK = ["plan", "--model", "llama-2-7b", "--cluster", "8xa100-80", "--global-batch", "64", "--seq", "2048"]
FEW = [*ASK, "--top", "1", "--fix", "tp=8,microbatch=2"]
TIME = ["plan", "--cluster", "8xa100-80", "--time", "2h"]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(list(args)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--budget-memory", "1GB"],
        ["--fix", "tp=8"],
        ["-o", "x.yaml"],
        ["--objective", "memory"],
        ["--objective", "time"],
        ["--global-batch", "3"],
        ["--top", "5"],
        ["--why", "tp=8"],
        ["--what-helps"],
        ["--tokens", "1T"],
        ["--job", "base"],
    ],
    ids=" ".join,
)
def test_beside_a_time(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *TIME, *options)
    assert "says nothing beside --time" in said
    assert not Path("x.yaml").exists()


def test_beside_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data says nothing beside --model" in refused(capsys, *ASK, "--data", "5B")
    assert "no recipe, so it has no job nothing" in refused(capsys, *ASK, "--job", "nothing")
    assert "a device of 8xA100-80 has 84.9 GB" in refused(capsys, *ASK, "--budget-memory", "200GB")


def test_the_json_has_notes_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["--seq", "8192"]
    assert cli.main([*FEW, *row, "--tokens", "1T", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert any("longer than the model's context" in note for note in told["notes"])
    assert any(note.startswith("products 0.9127: fitted to") for note in told["notes"])
    budget = told["tokens"]
    assert budget["steps"] == -(-(10**12) // (64 * 8192))
    assert budget["seconds"] == pytest.approx(budget["steps"] * told["plans"][0]["step_seconds"])
    assert budget["cost"] == pytest.approx(22.32 * budget["seconds"] / 3600)
    ask = ["plan", "--model", "gpt-1.7b", "--cluster", "8xmi250x", "--global-batch", "8", "--seq", "512"]
    fix = ["--fix", "pp=8,schedule=1f1b,microbatch=1", "--top", "1", "--tokens", "1B", "--json"]
    assert cli.main([*ask, *fix]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["cost"] is None


def test_a_layout_that_cannot_be_is_an_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    assert cli.main([*FEW, "--why", "pp=3", "-o", str(out)]) == 0
    assert "pp=3: cannot be: 8 devices do not divide by 3" in capsys.readouterr().out
    Plan.load(out)
    assert cli.main([*FEW, "--why", "ep=2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["why"]
    assert "no experts" in told["because"]
    assert told["terms"] == {}
