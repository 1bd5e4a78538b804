"""The job `traffic`: processes of its own, bytes counted beside their prediction, refusals before any
work.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import traffic
from tests.jobs.conftest import Work


def test_bytes_are_counted_beside_their_prediction(work: Work) -> None:
    sizes = {"rows": 4, "tokens": 4, "width": 8, "heads": 4, "groups": 2, "inner": 12}
    out, metrics = work(traffic.JOB, {"devices": [2], "cut": ["tensor"], **sizes})
    assert metrics["counted_bytes"] == metrics["predicted_bytes"] > 0
    assert metrics["largest_gap"] < 1e-12
    found = json.loads((out / "traffic.json").read_text())
    assert found["predicted"] == found["bytes"]
    assert "2 devices move" in (out / "traffic.txt").read_text()


def test_a_prediction_needs_no_processes(work: Work) -> None:
    _, metrics = work(
        traffic.JOB, {"graph": "products", "devices": [2, 4], "cut": ["data", "tensor"], "run": False}
    )
    assert metrics["predicted_bytes"] > 0
    assert "counted_bytes" not in metrics


def test_what_cannot_be_is_refused_before(tmp_path: Path) -> None:
    for wrong, match in (
        (
            {"rows": 2, "devices": [4], "cut": ["data"]},
            r"no signature of source 'x' is left over \(4,\).*b=2",
        ),
        ({"devices": [2, 2]}, "cut has 1 entries for 2 axes"),
        ({"heads": 8, "groups": 3}, "is not in even parts"),
    ):
        config = traffic.TrafficConfig.model_validate({"kind": "traffic", **wrong})
        with pytest.raises(ShunterError, match=match):
            traffic.JOB.check(config, tmp_path)
