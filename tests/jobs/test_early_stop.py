"""Trainings of a sweep of which some are stopped by their beginnings, and go on later."""

from __future__ import annotations

from pathlib import Path

from shunter.evaluate.early import Point, read, scores, stopped
from shunter.jobs import pretrain
from shunter.recipe.job import Stopped
from tests.jobs.conftest import Still, Work
from tests.jobs.test_training_jobs import HOW, SHAPE, TRAIN, rows

__all__ = ["rows"]  # a fixture
RATES = (1e-4, 1e-3, 1e-1)


def test_a_run_that_a_verdict_stopped_goes_on_as_if_it_had_not(rows: Path, work: Work) -> None:
    """All are stopped at the same step; the verdict lets some go on, and the others are revived later."""

    def run(name: str, lr: float, looks: int | None) -> Path | None:
        config = {
            "tokens": "r", "model": SHAPE, "train": {**TRAIN, "lr": lr},
            "how": {**HOW, "log_every": 1, "checkpoint_every": 1},
        }  # fmt: skip
        try:
            out, _ = work(
                pretrain.JOB, config, inputs={"tokens": rows}, name=name, control=Still(stop_after=looks)
            )
        except Stopped:
            return None
        return out

    def log(name: str) -> list[Point]:
        return read(rows.parents[1] / name / "log" / "events.jsonl", TRAIN["batch_rows"])  # type: ignore[arg-type]

    names = {f"cut {lr}": lr for lr in RATES}
    assert [run(name, lr, 3) for name, lr in names.items()] == [None] * 3
    found = scores({name: log(name) for name in names}, 3 * 4)
    left = stopped(found, share=0.7)
    assert len(left) == 2
    for name in sorted(names, key=lambda name: name in left):  # those that go on first
        out, whole = run(name, names[name], None), run(f"whole {names[name]}", names[name], None)
        assert out is not None
        assert whole is not None
        assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert log(name) == log(f"whole {names[name]}"), "no step is missing, none is there twice"
    assert scores({name: log(name) for name in names}, 3 * 4) == found, "what came later changes no verdict"
