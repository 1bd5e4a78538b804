"""A rank of a job that dies: who it was is told, and the same command goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.launch.inject import VARIABLE
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.jobs.conftest import Still, Work
from tests.jobs.test_ranks import same, train
from tests.jobs.test_training_jobs import rows

__all__ = ["rows"]  # a fixture


@pytest.mark.parametrize(
    ("vocabulary", "beside", "point", "step"),
    [
        (None, False, "train.update", 6),
        pytest.param(1, True, "checkpoint.shard", 8, marks=pytest.mark.long),
    ],
)
def test_a_rank_that_dies_ends_the_job_which_goes_on_later(
    rows: Path,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: int | None,
    beside: bool,
    point: str,
    step: int,
) -> None:
    """Amid a step, or in the thread that writes its part of a checkpoint beside the steps."""
    parallel = {"pp": 2, "schedule": "1f1b", "vocabulary": vocabulary}
    whole, _ = train(work, rows, parallel, "whole")
    fault = {"kind": "kill", "point": point, "step": step, "rank": 1}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(ShunterError, match="rank 1 was ended by SIGKILL"):
        train(work, rows, parallel, "cut", how={"checkpoint_async": beside})
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(Stopped):  # asked before the first step after the resume
        train(work, rows, parallel, "cut", control=Still(stop_after=0))
    shutil.copytree(rows.parents[1] / "cut", rows.parents[1] / "alone")
    cut, _ = train(work, rows, parallel, "cut")
    assert same(cut, whole)
    # The same checkpoint goes on in one process: the same rows, and the same model within rounding.
    alone, _ = train(work, rows, None, "alone")
    for name, tensor in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(load_file(alone / "model.safetensors")[name], tensor, rtol=1e-3, atol=2e-4)
    ledger = [events.read(folder.parent / "log" / "ledger.jsonl") for folder in (whole, alone)]
    taken = [{event["step"]: (event["position"], event["rows"]) for event in each} for each in ledger]
    assert taken[0] == taken[1]
    told = [event for event in events.read(cut.parent / "log" / "events.jsonl") if event["event"] == "resume"]
    assert next(event["step"] for event in told) == 4


@pytest.mark.parametrize(
    ("vocabulary", "waits"),
    [
        (None, "0RECV_B2: rank 1 does"),
        pytest.param(2, ".*another rank does", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_dies_amid_its_work_is_told_with_what_others_waited_for(
    rows: Path, work: Work, monkeypatch: pytest.MonkeyPatch, vocabulary: int | None, waits: str
) -> None:
    """In the seventh step, before the backward of its third micro-batch: the checkpoint of step 4 stays."""
    parallel = {"pp": 2, "schedule": "1f1b", "vocabulary": vocabulary}
    fault = {"kind": "kill", "point": "pipeline.action", "action": "1B2", "rank": 1, "hit": 7}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(
        ShunterError, match=f"rank 1 was ended by SIGKILL; rank 0 cannot .*{waits} not answer"
    ):
        train(work, rows, parallel, "cut")
    monkeypatch.delenv(VARIABLE)
    whole, _ = train(work, rows, parallel, "whole")
    cut, _ = train(work, rows, parallel, "cut")
    assert same(cut, whole)
    told = events.read(cut.parent / "log" / "events.jsonl")
    assert next(event["step"] for event in told if event["event"] == "resume") == 4
