"""A run that drifts away from its plan says so, and may go on under another: the losses are those of one
process all the same.

The slowness is put in on purpose and lies in one layout alone. What this cannot show: that a re-planned run
is quicker where the whole machine has become slow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.data.tokens import TokenRows
from shunter.jobs.drift import IN_A_ROW, WARM, Drift
from shunter.launch.inject import VARIABLE
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Question
from shunter.plan.explain import parse
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import practice
from shunter.plan.search import search
from shunter.record import events
from shunter.train.config import Parallel
from tests.jobs.conftest import Work
from tests.jobs.test_ranks import MODEL, TRAIN, train
from tests.jobs.test_training_jobs import rows

__all__ = ["rows"]  # a fixture

SLOW = {"kind": "slow", "point": "pipeline.action", "action": "1F0", "rank": 1, "seconds": 0.15}


def line(seconds: float, step: int = 0) -> dict[str, Any]:
    return {"event": "metrics", "step": step, "values": {"train/step_seconds": seconds}}


def test_a_drift_is_told_once_and_again_after_it_was_gone() -> None:
    drift = Drift(1.0, 1.5)
    quiet = [9.0] * WARM + [1.0, 2.0, 2.0, 1.2, 0.9]  # never IN_A_ROW beyond it
    assert not any(drift.see(line(seconds)) for seconds in quiet)
    young = Drift(1.0, 1.5)
    assert [bool(young.see(line(2.0))) for _ in range(WARM + 3)] == [False] * (WARM + 2) + [True]
    found = [drift.see(line(2.0 + 0.1 * n, n)) for n in range(IN_A_ROW + 4)]
    assert [bool(each) for each in found] == [n == IN_A_ROW - 1 for n in range(IN_A_ROW + 4)]
    told = found[IN_A_ROW - 1]
    assert told is not None
    assert (told.step, told.ratio) == (IN_A_ROW - 1, pytest.approx(2.1))
    assert drift.see(line(1.0)) is None
    assert [bool(drift.see(line(0.5))) for _ in range(IN_A_ROW)] == [False, False, True]  # quicker is one too
    drift.expect(0.5)
    assert not any(drift.see(line(0.5)) for _ in range(9))
    assert drift.see({"event": "metrics", "values": {"valid/loss": 1.0}}) is None


def planned(rows: Path, path: Path, fixed: str) -> Path:
    cluster = files.find("cpu")
    made = TokenRows(rows / "train")
    spec = DecoderSpec(**MODEL, vocab_size=made.vocab_size, max_positions=made.row_length)
    question = Question(
        spec,
        Fabric.of(cluster),
        TRAIN["batch_rows"],
        made.row_length,
        practice("shunter-fp32"),
        coefficients_of(cluster),
    )
    found = search(question, fixed=parse(fixed), top=1).plans[0].prediction
    Plan.of(question, cluster, found).save(path)
    return path


def test_a_slow_layout_is_left_for_another_and_the_losses_do_not_tell(
    rows: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(rows, tmp_path / "plan.yaml", "pp=2,schedule=1f1b")
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [SLOW]}))
    parallel = {"plan": str(plan), "replan": 3.0, "replans": 1}
    found, metrics = train(work, rows, parallel, "drifting", how={"log_every": 1})
    monkeypatch.delenv(VARIABLE)
    log = found.parent / "log"
    told = events.read(log / "events.jsonl")
    (drift,) = [event for event in told if event["event"] == "drift"][:1]
    assert drift["measured"] > 0.1 > drift["predicted"]
    (change,) = [event for event in told if event["event"] == "replan"]
    assert "pp 2" in change["was"]
    assert "pp" not in change["is"]
    resumed = [event["step"] for event in told if event["event"] == "resume"]
    assert len(resumed) == 1
    assert WARM + IN_A_ROW <= resumed[0] < TRAIN["steps"]
    account = metrics["account"]
    assert account["plan"]["layout"]["pp"] == 1
    assert account["changes"][0]["resumed"] == resumed[0]
    assert account["watched_step"] >= resumed[0]  # of the steps since
    for rank in account["ranks"]:
        shares = sum(rank[name] for name in ("compute", "communication", "waiting"))
        assert shares == pytest.approx(rank["seconds"], rel=1e-3)
        assert rank["sent_bytes"] == pytest.approx(rank["plan_sent_bytes"], rel=0.05)
        assert 0.5 < rank["peak_bytes"] / rank["plan_peak_bytes"] < 2
    assert len(account["ranks"]) == 2
    assert (log / "timeline-ranks.json").is_file()
    assert Plan.load(log / "plan-1.yaml").layout == account["plan"]["layout"]
    _, alone = train(work, rows, None, "alone")
    assert metrics["heldout_loss"] == pytest.approx(alone["heldout_loss"], rel=1e-4)
    ledgers = [
        events.read(tmp_path / "made" / name / "log" / "ledger.jsonl") for name in ("drifting", "alone")
    ]
    for name in ("position", "rows"):
        assert [each[name] for each in ledgers[0]] == [each[name] for each in ledgers[1]]
    for one, other in zip(*ledgers, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.long
def test_without_replan_it_says_so_and_goes_on(
    rows: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(rows, tmp_path / "plan.yaml", "pp=2,schedule=1f1b")
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [SLOW]}))
    found, metrics = train(work, rows, {"plan": str(plan)}, "drifting", how={"log_every": 1})
    told = events.read(found.parent / "log" / "events.jsonl")
    assert sum(event["event"] == "drift" for event in told) == 1
    assert not any(event["event"] in ("replan", "resume") for event in told)
    assert metrics["account"]["plan"]["layout"]["pp"] == 2
    assert "advice" in metrics["account"]


def test_replan_without_a_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="there is none: give plan"):
        Parallel.model_validate({"pp": 2, "replan": 1.5})
    with pytest.raises(ValueError, match="greater than 1"):
        Parallel.model_validate({"plan": "auto", "replan": 0.9})
    assert Parallel.model_validate({"plan": "auto", "replan": 1.5}).replans == 2


@pytest.mark.long
def test_a_job_that_was_killed_goes_on_under_the_plan_that_it_had_come_to(
    rows: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(rows, tmp_path / "plan.yaml", "pp=2,schedule=1f1b")
    faults = [SLOW, {"kind": "kill", "point": "train.update", "step": 10, "rank": 0}]
    parallel = {"plan": str(plan), "replan": 3.0, "replans": 1}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": faults}))
    with pytest.raises(ShunterError, match="rank 0 was ended by SIGKILL"):
        train(work, rows, parallel, "killed", how={"log_every": 1})
    monkeypatch.delenv(VARIABLE)
    found, metrics = train(work, rows, parallel, "killed", how={"log_every": 1})
    assert metrics["account"]["plan"]["layout"]["pp"] == 1
    assert len(metrics["account"]["changes"]) == 1
    told = events.read(found.parent / "log" / "events.jsonl")
    assert sum(event["event"] == "replan" for event in told) == 1
