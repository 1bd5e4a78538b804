"""A rank of a job that dies: who it was is told, and the same command goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.launch.inject import VARIABLE
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.jobs.conftest import Still, Work, work_in
from tests.jobs.test_ranks import same, train
from tests.jobs.test_training_jobs import rows_in

Whole = Callable[[int | None], Path]
PIPED = {"pp": 2, "schedule": "1f1b"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def work(place: Path) -> Work:
    return work_in(place)


@pytest.fixture(scope="module")
def rows(place: Path, work: Work) -> Path:
    return rows_in(place, work)


@pytest.fixture(scope="module")
def whole(work: Work, rows: Path) -> Whole:
    """What was learnt by a training that nobody disturbed, by its `vocabulary`; each is run once."""
    made: dict[int | None, Path] = {}

    def run(vocabulary: int | None) -> Path:
        if vocabulary not in made:
            made[vocabulary], _ = train(
                work, rows, {**PIPED, "vocabulary": vocabulary}, f"whole {vocabulary}"
            )
        return made[vocabulary]

    return run


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
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: int | None,
    beside: bool,
    point: str,
    step: int,
) -> None:
    """Amid a step, or in the thread that writes its part of a checkpoint beside the steps."""
    parallel, name = {**PIPED, "vocabulary": vocabulary}, f"cut {point}"
    fault = {"kind": "kill", "point": point, "step": step, "rank": 1}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(ShunterError, match="rank 1 was ended by SIGKILL"):
        train(work, rows, parallel, name, how={"checkpoint_async": beside})
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(Stopped):  # asked before the first step after the resume
        train(work, rows, parallel, name, control=Still(stop_after=0))
    shutil.copytree(rows.parents[1] / name, rows.parents[1] / f"alone {point}")
    cut, _ = train(work, rows, parallel, name)
    assert same(cut, whole(vocabulary))
    # The same checkpoint goes on in one process: the same rows, and the same model within rounding.
    alone, _ = train(work, rows, None, f"alone {point}")
    for name, tensor in load_file(whole(vocabulary) / "model.safetensors").items():
        torch.testing.assert_close(load_file(alone / "model.safetensors")[name], tensor, rtol=1e-3, atol=2e-4)
    ledger = [events.read(folder.parent / "log" / "ledger.jsonl") for folder in (whole(vocabulary), alone)]
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
    rows: Path,
    work: Work,
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: int | None,
    waits: str,
) -> None:
    """In the seventh step, before the backward of its third micro-batch: the checkpoint of step 4 stays."""
    parallel, name = {**PIPED, "vocabulary": vocabulary}, f"amid {vocabulary}"
    fault = {"kind": "kill", "point": "pipeline.action", "action": "1B2", "rank": 1, "hit": 7}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(
        ShunterError, match=f"rank 1 was ended by SIGKILL; rank 0 cannot .*{waits} not answer"
    ):
        train(work, rows, parallel, name)
    monkeypatch.delenv(VARIABLE)
    cut, _ = train(work, rows, parallel, name)
    assert same(cut, whole(vocabulary))
    told = events.read(cut.parent / "log" / "events.jsonl")
    assert next(event["step"] for event in told if event["event"] == "resume") == 4
