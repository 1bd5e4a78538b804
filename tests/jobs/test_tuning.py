"""`shunter tune`: knobs as a person writes them; trials that run, fail or are refused; going on from the log.

What this cannot show: that a choice is faster; the job here does not train.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import tuning
from shunter.jobs.tuning_start import planned_first
from shunter.plan.trials import Point

RECIPE = """\
version: 1
name: rehearsals
seed: 0
jobs:
  base: {kind: rehearse, schedule: gpipe, ranks: 2, microbatches: 4}
"""


def test_knobs_as_a_person_writes_them() -> None:
    knobs = tuning.read_knobs(["jobs.base.ranks=2,4", "jobs.base.recompute=true,false", "x=1f1b,gpipe"])
    assert knobs == {"jobs.base.ranks": [2, 4], "jobs.base.recompute": [True, False], "x": ["1f1b", "gpipe"]}
    point = tuning.read_point("recompute=true,ranks=4,x=gpipe", knobs)
    assert list(point.items()) == [("jobs.base.ranks", 4), ("jobs.base.recompute", True), ("x", "gpipe")]
    for bad in (
        ["ranks"],
        ["a=1,1"],
        ["a=1", "a=2"],
        [],
        ["a="],
        [f"k{n}=1,2,3,4,5,6,7,8,9" for n in range(6)],
    ):
        with pytest.raises(ShunterError):
            tuning.read_knobs(bad)
    with pytest.raises(ShunterError, match="Did you mean 'ranks'"):
        tuning.read_point("rnks=4", knobs)
    with pytest.raises(ShunterError, match="has no value"):
        tuning.read_point("ranks=4", knobs)


def test_trials_run_fail_and_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter.jobs import rehearse

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    ran: list[Point] = []

    def run(self: object, context: object) -> dict[str, float]:
        config = context.config  # type: ignore[attr-defined]
        ran.append({"m": config.microbatches})
        if config.microbatches == 16:
            raise RuntimeError("out of memory\nat some place")
        (context.out / "rehearsal.json").write_text("{}")  # type: ignore[attr-defined]
        return {"speed": float(config.microbatches * (2 if config.recompute else 1))}

    monkeypatch.setattr(rehearse.RehearseJob, "run", run)
    # An interleaved schedule takes whole groups only: 5 micro-batches are refused before anything runs.
    knobs = tuning.read_knobs(
        ["jobs.base.microbatches=1,4,8,16", "jobs.base.schedule=gpipe,interleaved-1f1b"]
    )

    def go(trials: int, metric: str = "speed") -> tuple[tuning.Space, tuning.Trials]:
        return tuning.tune(
            path, [], "base", knobs, metric=metric, trials=trials, store=tmp_path / "s", log=tmp_path / "log",
            method="random",
        )  # fmt: skip

    space, found = go(20)
    refused = [
        p
        for p in ({"jobs.base.microbatches": 1, "jobs.base.schedule": "interleaved-1f1b"},)
        if space.refused(p)
    ]
    assert len(refused) == 1
    assert len(found.done) == len(ran) == 7
    failed = [trial for trial in found.done if trial.value is None]
    assert {(t.point["jobs.base.microbatches"], t.failed) for t in failed} == {(16, "out of memory")}
    assert found.best is not None
    assert found.best.value == 8
    assert go(20)[1].done == found.done
    assert len(ran) == 7  # from the log
    told = json.loads(json.dumps(tuning.report(space, found)))
    assert (told["trials"], told["failures"], told["importance"]) == (7, 2, {})
    head = json.loads((tmp_path / "log").read_text().split("\n")[0])
    assert head["start"] == []  # the planner knows nothing of this job
    assert (head["of"]["job"], head["of"]["metric"]) == ("base", "speed")
    assert told["by_other_code"] == 0
    path.write_text(RECIPE.replace("ranks: 2", "ranks: 4"), encoding="utf-8")
    with pytest.raises(ShunterError, match="of another search: other recipe"):
        go(20)
    path.write_text(RECIPE, encoding="utf-8")
    with pytest.raises(ShunterError, match="of another search: other metric"):
        go(20, "seconds")
    (tmp_path / "log").unlink()
    with pytest.raises(ShunterError, match="has no number 'sped'"):
        go(3, "sped")


KNOBS = ["jobs.base.how.parallel.pp=1,2", "jobs.base.train.validate_every=15,30"]


def test_trials_begin_with_the_planner_s_best() -> None:
    """Of points that differ in what the planner predicts; what it does not look at stays as it comes."""
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart-short.yaml"
    knobs = tuning.read_knobs(KNOBS)
    said: list[str] = []

    def first(metric: str = "tokens_per_second") -> list[Point]:
        def changes(point: Point) -> list[str]:
            return [f"{key}={json.dumps(value)}" for key, value in point.items()]

        return planned_first(recipe, changes, ["base"], tuning.Space(knobs), metric, "cpu", said.append)

    (best,) = first()
    assert best["jobs.base.how.parallel.pp"] == 2  # two devices are faster than one
    assert best["jobs.base.train.validate_every"] == 15
    assert "planner's best of 4 points" in said[-1]
    knobs["jobs.base.how.micro_batch"] = [1, 8, 2]
    knobs["jobs.base.how.parallel.pp"] = [1]
    (alike,) = first()  # as fast by prediction, in fewer parts
    assert alike["jobs.base.how.micro_batch"] == 8
    assert first("heldout_loss") == []
    assert "does not predict heldout_loss" in said[-1]
    knobs["jobs.base.how.parallel.schedule"] = ["hanayo"]
    knobs["jobs.base.how.parallel.pp"] = [2]
    assert first() == []
    assert "begin by chance" in said[-1]
