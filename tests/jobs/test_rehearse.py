"""The job `rehearse`: processes of its own, an artefact, refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import rehearse
from shunter.record.timeline import Timeline
from tests.jobs.conftest import Work


def test_a_rehearsal_is_measured_beside_its_simulation(work: Work) -> None:
    pads = {"forward": 0.02, "input_grad": 0.02, "weight_grad": 0.02}
    config = {"schedule": "gpipe", "microbatches": 2, "repeats": 2, "recompute": True, **pads}
    out, metrics = work(rehearse.JOB, config)
    assert metrics["simulated_seconds"] == pytest.approx(0.02 * 3 * 3 + 0.02)
    assert metrics["step_seconds"] >= metrics["simulated_seconds"]
    found = json.loads((out / "rehearsal.json").read_text())
    assert len(found["seconds"]) == len(found["idle"]) == 2
    measured, simulated = (Timeline.load(out / f"timeline-{kind}.json") for kind in ("measured", "simulated"))
    assert {(s.rank, s.name) for s in measured} == {(s.rank, s.name) for s in simulated}


def test_what_cannot_be_is_refused_before(tmp_path: Path) -> None:
    config = rehearse.RehearseConfig(kind="rehearse", schedule="interleaved-1f1b", ranks=4, microbatches=2)
    with pytest.raises(ShunterError, match="fewer than the 4 ranks"):
        rehearse.JOB.check(config, tmp_path)
