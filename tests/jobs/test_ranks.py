"""A job on several processes: the model of one process, milestones, requests to stop."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.jobs import pretrain
from shunter.launch.inject import VARIABLE
from shunter.record import events
from shunter.record.timeline import Timeline
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.lower import lower
from shunter.schedule.text import write_order, write_program
from tests.jobs.conftest import Work
from tests.jobs.test_training_jobs import SHAPE, rows

__all__ = ["rows"]  # a fixture

MODEL = {**SHAPE, "num_layers": 4, "tied": True}
TRAIN = {"steps": 12, "batch_rows": 4, "precision": "fp32", "validate_every": 6, "optimizer": "adamw"}
HOW = {"threads": 1, "log_every": 2, "checkpoint_every": 4}


def train(work: Work, rows: Path, parallel: dict[str, Any] | None, name: str, **more: Any) -> Any:
    how = {**HOW, "parallel": parallel, **more.pop("how", {})}
    config = {"tokens": "r", "model": MODEL, "train": TRAIN, "how": how}
    return work(pretrain.JOB, config, inputs={"tokens": rows}, name=name, **more)


def same(a: Path, b: Path) -> bool:
    one, two = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("vocabulary", [None, 2])
def test_two_processes_make_the_model_of_one(
    rows: Path, work: Work, monkeypatch: pytest.MonkeyPatch, vocabulary: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})  # of which each rank gets one
    milestones = {"every": 6, "prompts": ["the ship"], "max_new_tokens": 4}
    parallel = {"pp": 2, "schedule": "zbv", "microbatches": 4, "timeline": 5, "vocabulary": vocabulary}
    alone, expected = train(work, rows, None, "alone", how={"milestones": milestones})
    piped, metrics = train(work, rows, parallel, "piped", how={"milestones": milestones, "threads": 0})
    (kept, *_) = (piped.parent / "private" / "checkpoints").glob("step-*/manifest.json")
    assert json.loads(kept.read_text())["extra"]["facts"]["threads"] == 1
    for name in ("loss", "heldout_loss", "tokens", "parameters"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name
    assert "milestone/distinct_2" in metrics
    for told in (expected["account"], metrics["account"]):  # by hand, foretold all the same
        if "unpredicted" in told:
            assert "embedding and head" in told["unpredicted"]
        else:
            assert told["step_seconds"] > 0
            assert told["plan_step_seconds"] > 0
    assert ("unpredicted" in metrics["account"]) == (vocabulary is not None)
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, piped))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    log = piped.parent / "log"
    told = events.read(log / "events.jsonl")
    assert {"progress", "metrics", "sample", "timeline"} <= {event["event"] for event in told}
    steps = [event["step"] for event in events.read(log / "ledger.jsonl")]
    assert steps == list(range(12))
    measured, simulated = (Timeline.load(log / f"timeline-{kind}.json") for kind in ("measured", "simulated"))
    assert {(s.rank, s.name) for s in measured} == {(s.rank, s.name) for s in simulated}
    assert not measured.overlaps()
    (event,) = (event for event in told if event["event"] == "timeline")
    assert len(event["saved_bytes"]) == 2
    assert all(event["saved_bytes"])


def test_an_error_of_a_rank_is_the_job_s(rows: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one in the middle of a step, for whose messages the other waits, for ten minutes if it had to."""
    fault = {"kind": "exception", "point": "pipeline.action", "action": "1B0", "rank": 1, "hit": 3}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 1 failed:\n(.|\n)*injected at pipeline.action"):
        train(work, rows, {"pp": 2, "timeout": 600}, "failing")
    assert time.monotonic() - begin < 300
    assert "RANK" not in os.environ


def test_a_program_s_file_trains_what_its_schedule_does(rows: Path, work: Work, tmp_path: Path) -> None:
    """A file written with its messages, and one found by synthesis, in torch's form."""
    order = schedule("1f1b").build(2, 4)
    (tmp_path / "mine.csv").write_text(write_program(lower(assemble(order)), order), encoding="utf-8")
    (tmp_path / "found.csv").write_text(write_order(schedule("zbv").build(2, 3)), encoding="utf-8")
    by_name, _ = train(work, rows, {"pp": 2, "microbatches": 4}, "by-name")
    by_file, _ = train(work, rows, {"pp": 2, "program": "mine.csv"}, "by-file")
    assert same(by_name, by_file)
    found, _ = train(work, rows, {"pp": 2, "program": "found.csv"}, "found")
    for name, tensor in load_file(by_name / "model.safetensors").items():
        torch.testing.assert_close(load_file(found / "model.safetensors")[name], tensor, rtol=1e-3, atol=2e-4)


PROGRAMS = [
    ({"program": "none.csv"}, "1f1b", "the program cannot be read: No such file"),
    ({"schedule": "zb1p"}, "1f1b", "both program and schedule say what ranks do"),
    ({"microbatches": 3}, "1f1b", "the program has 4 micro-batches, not 3"),
    ({"pp": 3}, "1f1b", "the program is of 2 ranks, pp of 3"),
    ({}, "forward-only", "the program trains nothing"),
    ({"cut": [1, 2]}, "1f1b", "cut has 2 bounds, but 2 stages have 1"),
]


@pytest.mark.parametrize(("changed", "name", "says"), PROGRAMS)
def test_programs_that_cannot_be_trained_by(
    rows: Path, work: Work, tmp_path: Path, changed: dict[str, Any], name: str, says: str
) -> None:
    order = schedule(name).build(2, 4)
    (tmp_path / "mine.csv").write_text(write_program(assemble(order), order), encoding="utf-8")
    with pytest.raises(ShunterError, match=says):
        train(work, rows, {"pp": 2, "program": "mine.csv", **changed}, "never")


REFUSED = [
    ({"pp": 2, "schedule": "1fb1"}, {}, "Did you mean 1f1b"),
    ({"pp": 5, "microbatches": 4}, {}, "4 layers cannot be cut into 5 stages"),
    ({"pp": 2, "microbatches": 5}, {}, "4 rows a step cannot be cut into 5 micro-batches"),
    ({"pp": 2, "schedule": "interleaved-1f1b", "microbatches": 1}, {}, "fewer than the 2 ranks"),
    ({"pp": 2, "schedule": "zb1p"}, {"compile": True}, "zb1p takes gradients of weights later"),
    ({"recompute": "selective"}, {"compile": True}, "looks at single operations"),
    ({"offload": [0]}, {"compile": True}, "looks at what single operations keep"),
    ({"pp": 2}, {"compile_memory": 0.9}, "none is compiled"),
    ({"pp": 2, "schedule": "dualpipev", "vocabulary": 2}, {}, "cannot stand between actions that run as one"),
]


@pytest.mark.parametrize(("parallel", "how", "says"), REFUSED)
def test_what_cannot_be_is_refused_before_any_work(
    rows: Path, work: Work, parallel: dict[str, Any], how: dict[str, Any], says: str
) -> None:
    with pytest.raises(ShunterError, match=says):
        train(work, rows, parallel, "never", how=how)
