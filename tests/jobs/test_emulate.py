"""The job `emulate`: steps over emulated links take what the event simulation says, and bad cases are
refused.

What this cannot show: that a real cluster's links behave so. They are assumed to carry one message after the
other at a steady rate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import emulate


def cluster(rates: list[list[float]]) -> dict[str, Any]:
    """One device a node; rates[a][b]: bytes a second from a to b."""
    size = range(len(rates))
    return {
        "name": "emulated",
        "devices": {"d": {"memory": 1e9, "memory_bandwidth": 1e9, "flops": {"fp32": {"peak": 1e9}}}},
        "links": {
            f"l{a}-{b}": {"latency": 0.002, "bandwidth": rates[a][b]} for a in size for b in size if a != b
        },
        "nodes": {"n": {"count": len(rates), "device": "d", "devices": 1}},
        "pairs": [
            {"ends": [f"n.{a}", f"n.{b}"], "link": f"l{a}-{b}", "back": f"l{b}-{a}"}
            for a in size
            for b in size
            if a < b
        ],
    }


def test_cases_that_cannot_be_are_refused(tmp_path: Path) -> None:
    good = {
        "grid": [0, 1], "pp": 2, "microbatches": 1, "forward": [0.01, 0.01], "backward": [0.01, 0.01],
        "message": 1.0, "gradients": [1.0, 1.0],
    }  # fmt: skip
    for change, said in {
        "grid: [0, 0]": "no different ranks",
        "grid: [0, 7]": "no different ranks of 2",
        "pp: 3": "no whole pipelines of 3",
        "forward: [0.01]": "one for each of 2 stages",
        'by: "l0-2"': "'l0-2' is no link of this cluster",
        'speeds: {"m": 1}': "1 is no speed of nodes",
        'speeds: {"n": 0}': "0 is no speed of nodes",
    }.items():
        key, _, value = change.partition(": ")
        given = {"kind": "emulate", "cluster": cluster([[1.0, 1.0], [1.0, 1.0]]), "cases": {"a": good}}
        if key == "speeds":
            given[key] = json.loads(value)
        else:
            given["cases"] = {"a": {**good, key: json.loads(value)}}
        config = emulate.EmulateConfig.model_validate(given)
        with pytest.raises(ShunterError, match=said):
            emulate.JOB.check(config, tmp_path)
