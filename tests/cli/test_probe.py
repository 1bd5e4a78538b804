"""`shunter probe`: the table and the JSON of what was measured. The measurement itself:
tests/plan/test_probe.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli.main import main
from shunter.cluster import files
from shunter.plan import probe
from tests.plan.test_probe import measured


def test_what_was_measured_is_shown_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe.elastic, "launch", lambda *a, **k: measured())
    out = tmp_path / "here.yaml"
    assert main(["probe", "--ranks", "3", "-o", str(out)]) == 0
    table = capsys.readouterr().out
    assert "0.09 ±2 %" in table
    assert "gloo" in table
    assert files.read(out).world == 3
    assert main(["probe", "--ranks", "3", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["measured"]["collectives"][0]["ranks"] == 3
    assert "measured before" in printed.err
