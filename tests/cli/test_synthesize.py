"""`shunter synthesize`: text, JSON, the file it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.schedule.check import check
from shunter.schedule.text import read_program

SMALL = ["synthesize", "--ranks", "4", "--microbatches", "8", "--seconds", "0.1"]


def test_json_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "order.csv"
    assert cli.main([*SMALL, "--cap", "3,2,2,2", "--json", "--csv", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bound"] <= found["elapsed"] <= 41
    assert [peak <= cap for peak, cap in zip(found["peak_activations"], (3, 2, 2, 2), strict=True)] == [
        True
    ] * 4
    assert file.read_text("utf-8").splitlines() == found["order"]
    check(read_program(file.read_text("utf-8")), cap=[3, 2, 2, 2])


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--cap", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("elapsed 27 in the unit of the costs (proven: nothing is shorter)")
    assert "rank 3: 3F0 3I0" in out
    assert cli.main([*SMALL, "--cap", "2", "--placement", "vee"]) == 0
    assert "at most" in capsys.readouterr().out


def test_costs_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.json"

    def elapsed(costs: object) -> float:
        file.write_text(json.dumps(costs), "utf-8")
        assert cli.main([*SMALL, "--cap", "4", "--chunks", "2", "--json", "--costs", str(file)]) == 0
        return float(json.loads(capsys.readouterr().out)["elapsed"])

    even = {"forward": 1, "input_grad": [1.0] * 4, "weight_grad": [0.5] * 8}
    assert elapsed(even) == elapsed({key: 1 for key in even})
    assert elapsed({**even, "forward": [1, 1, 1, 3]}) > elapsed(even)


@pytest.mark.parametrize(
    ("costs", "text"),
    [
        ("{", "costs.json:1: the costs are no JSON"),
        ("[]", "no JSON object"),
        ('{"forwards": 1}', "Did you mean forward?"),
        ('{"forward": 1, "input_grad": 1}', "weight_grad is missing"),
        ('{"forward": [1, 2], "input_grad": 1, "weight_grad": 1}', "2 times for 4 ranks"),
        ('{"forward": true, "input_grad": 1, "weight_grad": 1}', "True is no time"),
        ('{"forward": -1, "input_grad": 1, "weight_grad": 1}', "-1 is no time"),
    ],
)
def test_costs_that_are_none(
    costs: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "costs.json"
    file.write_text(costs, "utf-8")
    assert cli.main([*SMALL, "--cap", "4", "--costs", str(file)]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--cap", "0.5"], "rank 0 has no room for 0F0"),
        (["--cap", "0.5", "--placement", "vee"], "rank 0 has no room for 7F0"),
        (["--cap", "4,4,4"], "3 caps for 4 ranks"),
        (["--cap", "four"], "'four' in the cap is no number"),
        (["--cap", "4", "--placement", "vee", "--chunks", "3"], "vee has 2 stages"),
        (["--cap", "4", "--ranks", "0"], "ranks are 0"),
        (["--cap", "4", "--costs", "none.json"], "none.json: the costs cannot be read"),
        (["--cap", "4", "--costs", "none.json", "--forward", "2"], "both none.json and --forward"),
        (["--cap", "4", "--csv", "no/such/folder.csv"], "the order cannot be written"),
    ],
)
def test_what_is_refused(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, *options]) == 2
    assert text in capsys.readouterr().err
