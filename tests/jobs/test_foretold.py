"""Runs whose layout was written by hand stand beside a prediction too: the one that a plan of it would hold.

What this cannot show: that the prediction of a small model on a CPU is near.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.jobs import foretold
from shunter.jobs.foretold import Foretold, foretell
from shunter.jobs.questions import Trained, question
from shunter.jobs.replanning import Course
from shunter.plan import probe
from shunter.plan.choices import SCHEDULES
from shunter.plan.explain import parse
from shunter.plan.plan import Plan
from shunter.plan.presets import preset
from shunter.plan.search import search
from shunter.record.events import EventLog
from shunter.report.plans import describe_plans
from shunter.train.config import Parallel, TrainConfig, TrainHow
from tests.jobs.conftest import Work
from tests.jobs.test_ranks import train
from tests.jobs.test_training_jobs import rows
from tests.plan import uneven

__all__ = ["rows"]  # a fixture

SPEC = preset("llama-3-8b")


def written(parallel: dict[str, Any] | None, micro_batch: int = 2, **how: Any) -> Trained:
    made = TrainConfig(steps=10, batch_rows=64, optimizer="adamw", precision="bf16")
    told = None if parallel is None else Parallel.model_validate(parallel)
    return Trained(SPEC, 2048, made, TrainHow(parallel=told, micro_batch=micro_batch, **how))


@pytest.mark.parametrize(
    "fixed",
    ["pp=4,tp=2,schedule=1f1b,recompute=stage", "pp=8,schedule=zbv", "fsdp=8,recompute=layer", "dp=8",
     "pp=2,tp=2,cp=2,schedule=interleaved-1f1b,chunks=2", "dp=4,tp=2,recompute=none"],
)  # fmt: skip
def test_a_plan_written_as_a_layout_is_foretold_as_it_was_planned(fixed: str) -> None:
    where = files.find("8xa100-80")
    found = search(question(SPEC, where, 64, 2048, "shunter"), fixed=parse(fixed), top=1, finalists=2)
    plan = Plan.of(found.question, where, found.plans[0].prediction)
    # The cut is told, since a plan's is even in predicted time, and a recipe's own in operations.
    again = foretell(written({"zero": 0, **plan.parallel()}, plan.microbatch), where)
    if plan.layout.get("zero"):
        assert again.practice == plan.practice
    for name in ("step_seconds", "compute_seconds", "communication_seconds", "bubble_seconds"):
        assert getattr(again, name) == pytest.approx(getattr(plan, name), rel=0.02, abs=1e-3), name
    assert again.memory_bytes_by_stage == pytest.approx(plan.memory_bytes_by_stage, rel=0.02)


def test_what_differs_from_a_plan_is_counted() -> None:
    where = files.find("8xa100-80")
    shared, whole = (foretell(written({"dp": 8, "zero": zero}), where) for zero in (1, 0))
    assert whole.memory_parts["optimizer"] == pytest.approx(8 * shared.memory_parts["optimizer"])
    assert whole.practice == "shunter+unshared"
    split, unsplit = (foretell(written({"tp": 8, "sequence": on}), where) for on in (True, False))
    assert unsplit.memory_parts["activations"] > split.memory_parts["activations"]
    kept, again = (foretell(written({"fsdp": 8, "recompute": what}), where) for what in (False, "full"))
    assert again.compute_seconds > 1.2 * kept.compute_seconds
    few = foretell(written({"fsdp": 8, "recompute": [0, 1, 2]}), where)
    assert few.layout["again"] == [0, 1, 2]
    assert kept.compute_seconds < few.compute_seconds < again.compute_seconds
    one = files.find("1xa100-80")
    assert foretell(written(None), one).devices == 1
    uneven = foretell(written({"pp": 2, "tp": 4, "cut": [4]}), where)
    assert uneven.layout["cut"] == [4]
    assert uneven.step_seconds > 1.3 * foretell(written({"pp": 2, "tp": 4, "cut": [16]}), where).step_seconds


def test_layers_with_degrees_of_their_own() -> None:
    where = files.find("8xa100-80")
    one, other = {"fsdp": 8}, {"fsdp": 4, "tp": 2}
    plain, apart = (foretell(written(each, rows), where) for each, rows in ((one, 2), (other, 4)))
    own = [{"of": list(range(n)), **other} for n in (16, 32)]
    half, all_ = (foretell(written({**one, "layers": [each]}), where) for each in own)
    assert half.layout["layers"][0]["of"] == list(range(16))
    low, high = sorted((plain.compute_seconds, apart.compute_seconds))
    assert low * 0.99 <= half.compute_seconds <= high * 1.01
    assert all_.compute_seconds == pytest.approx(apart.compute_seconds, rel=0.02)  # but for both ends
    Plan.of_data(half.data(), "plan.yaml")
    # All layers and both ends so: the other layout by another name.
    same = foretell(written({**one, "layers": [own[1]], "ends": other}), where)
    assert same.step_seconds == pytest.approx(apart.step_seconds, rel=1e-4)  # gradients in two sums
    assert same.memory_bytes_by_stage == pytest.approx(apart.memory_bytes_by_stage)
    with pytest.raises(ShunterError, match="beside recomputation"):
        foretell(written({**one, "layers": [own[0]], "recompute": "full"}), where)


def test_they_are_told_where_devices_differ_too() -> None:
    where = uneven.cluster(kinds=("quick", "lame", "lame", "quick"))
    other = {"fsdp": 4, "tp": 2}
    plain, same = (foretell(written(each, rows), where) for each, rows in (({"fsdp": 8}, 2), (other, 4)))
    every = {"fsdp": 8, "ends": other, "layers": [{"of": list(range(32)), **other}]}
    found = foretell(written(every), where)
    assert found.step_seconds == pytest.approx(same.step_seconds, rel=1e-4)
    assert found.step_seconds != pytest.approx(plain.step_seconds, rel=1e-2)
    assert found.memory_bytes_by_stage == pytest.approx(same.memory_bytes_by_stage)
    cut = foretell(written({"pp": 2, "tp": 4, "cut": [20], "ends": {"dp": 4}}), where)
    assert cut.layout["cut"] == [20]


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"pp": 8, "schedule": "hanayo"}, "the schedule hanayo"),
        ({"pp": 8, "vocabulary": 1}, "embedding and head over all ranks"),
        ({"cp": 8, "attention": "ulysses"}, "attention ulysses"),
        ({"pp": 8, "cut": "measured"}, "a cut that is measured"),
        ({"pp": 4}, "the layout is of 4 ranks"),
    ],
)
def test_what_is_not_known_is_said(parallel: dict[str, Any], said: str) -> None:
    with pytest.raises(ShunterError, match=said):
        foretell(written(parallel), files.find("8xa100-80"))


def test_every_schedule_of_the_planner_is_foretold() -> None:
    where = files.find("8xa100-80")
    for name in SCHEDULES:
        chunks = {"chunks": 2} if name == "interleaved-1f1b" else {}
        found = foretell(written({"pp": 8, "schedule": name, "microbatches": 16, **chunks}), where)
        assert found.schedule == name


def test_a_run_has_an_account(
    rows: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process; several are started by the same code as with a plan (the test below)."""
    monkeypatch.setattr(probe, "cache", lambda: tmp_path / "nothing")
    _, metrics = train(work, rows, None, "alone", how={"log_every": 1})
    told = metrics["account"]
    assert told["basis"] == "as a CPU in general"
    assert told["step_seconds"] > 0
    assert told["measured_over_predicted"] == pytest.approx(told["step_seconds"] / told["plan_step_seconds"])
    assert told["memory_bytes"] > 0
    assert "advice" not in told
    plan = Plan.of_data(told["plan"], "manifest.json")
    assert plan.devices == 1


class Fact:
    def __init__(self, metrics: dict[str, Any]) -> None:
        self.name, self.metrics, self.log = "base", metrics, None


def test_ranks_without_a_plan_have_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, asked = files.find("8xa100-80"), written({"fsdp": 8})
    plan = foretell(asked, where)
    monkeypatch.setattr(foretold, "of_run", lambda context: Foretold(plan, "as it ships"))

    class Context:
        class config:
            train, how = asked.train, asked.how

        log = tmp_path
        base = tmp_path

    log = EventLog(tmp_path / "events.jsonl", attempt=1)
    for step in range(4):
        log.metrics(step, **{"train/step_seconds": 2 * plan.step_seconds, "train/memory_mib": 1000.0})
    log.close()
    parallel = asked.how.parallel
    assert parallel is not None
    course = Course(Context(), parallel, parallel)  # type: ignore[arg-type]
    assert not course.see({"event": "metrics", "values": {"train/step_seconds": 9.0}})
    told = course.account()
    course.close()
    assert told["account"]["measured_over_predicted"] == pytest.approx(2.0)
    (held,) = describe_plans([Fact(told)], [])  # type: ignore[list-item]
    assert "as it was written" in held.notes[0]
    (other,) = describe_plans([Fact({"account": {"unpredicted": "nothing is known"}})], [])  # type: ignore[list-item]
    assert other.notes == ["Not predicted: nothing is known."]
