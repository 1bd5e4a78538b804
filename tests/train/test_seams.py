"""What a training remembers over an interruption besides its weights: spikes, metrics, its own length."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.recipe.job import Stopped
from shunter.record import events, points, track
from shunter.train import loop
from shunter.train.loop import Training
from shunter.train.schedule import rate
from tests.jobs.conftest import Still
from tests.train import corpora

LONG = {"steps": 90, "lr": 1e-4, "batch_rows": 2}
RARELY = {"checkpoint_every": 100, "log_every": 100}


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    points.install(None)


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


def kill_at(wanted: int, point: str = "train.update") -> None:
    def kill(name: str, facts: dict[str, Any]) -> None:
        if name == point and facts["step"] == wanted:
            raise Killed

    points.install(kill)


def high_loss(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """These steps report a loss of 50 nats/token more than they had."""
    real = loop.train_step

    def step(*args: Any, **facts: Any) -> Any:
        result = real(*args, **facts)
        extra = 50.0 if facts["step"] in steps else 0.0
        return dataclasses.replace(result, loss=result.loss + extra)

    monkeypatch.setattr(loop, "train_step", step)


def told(folder: Path, event: str) -> list[dict[str, Any]]:
    return [e for e in events.read(folder / "log" / "events.jsonl") if e["event"] == event]


def stopped(folder: Path, after: int, config: dict[str, Any] = LONG) -> Training:
    training = corpora.training(folder, config, RARELY, control=Still(stop_after=after))
    with pytest.raises(Stopped):
        training.run()
    return training


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_on_where_it_is_installed(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked for: its event files stand beside the log, or there is no word about them."""
    if installed:
        pytest.importorskip("tensorboard", reason="needs the extra track")
    else:
        monkeypatch.setitem(track.PACKAGES, "tensorboard", ("no_such_package_at_all", "track"))
    corpora.training(tmp_path, {"steps": 4}, {"track": None}).run()
    found = list((tmp_path / "log").glob("track/tensorboard/events.out.tfevents.*"))
    assert len(found) == installed
    corpora.training(tmp_path / "off", {"steps": 4}, {"track": []}).run()
    assert not list((tmp_path / "off" / "log").glob("track/*"))


def test_a_spike_after_a_restart_names_the_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, 60)
    high_loss(monkeypatch, 63, 81)
    corpora.training(tmp_path, LONG, RARELY).run()
    spikes = told(tmp_path, "spike")
    assert [(s["step"], s["causes"]) for s in spikes] == [(63, ["restart"]), (81, ["data rows"])]
    assert all(s["z"]["loss"] > 6 and len(s["rows"]) == 2 for s in spikes)


def test_a_spike_after_a_change_of_device_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, 60)
    monkeypatch.setattr(loop, "_name", lambda device: "another device")
    stopped(tmp_path, 3)
    high_loss(monkeypatch, 65)
    corpora.training(tmp_path, LONG, RARELY).run()  # the second restart forgets nothing of the first
    (spike,) = told(tmp_path, "spike")
    assert (spike["step"], spike["causes"]) == (65, ["restart", "hardware"])


@pytest.mark.parametrize("restore", ["full", "no-optimizer", "weights-only"])
def test_a_spike_after_a_planned_restart_names_it(
    restore: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    high_loss(monkeypatch, 62)
    config = {**LONG, "steps": 64, "restart": {"at": 60, "restore": restore}}
    corpora.training(tmp_path, config, RARELY).run()
    assert [s["causes"] for s in told(tmp_path, "spike") if s["step"] == 62] == [["restart"]]


@pytest.mark.parametrize("at", [3, 5, 9])
def test_a_kill_leaves_no_mark_in_the_metrics(at: int, tmp_path: Path) -> None:
    """Windows of the detector, means in the log and headline metrics are an uninterrupted run's."""
    heldout = corpora.rows(tmp_path / "heldout", documents=12, seed=9)
    more: dict[str, Any] = {"heldout": heldout}
    how = {"log_every": 3, "checkpoint_every": 4}
    whole = corpora.training(tmp_path / "whole", {"validate_every": 5}, how, **more)
    expected = whole.run()
    kill_at(at)
    with pytest.raises(Killed):
        corpora.training(tmp_path / "killed", {"validate_every": 5}, how, **more).run()
    points.install(None)
    again = corpora.training(tmp_path / "killed", {"validate_every": 5}, how, **more)
    found = again.run()
    assert again.session.spikes.values == whole.session.spikes.values

    def timeless(values: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k.split("/")[-1] not in CLOCK}

    assert timeless(found) == timeless(expected)
    curves = [
        [timeless(row) for row in events.read_metrics(tmp_path / name / "log" / "events.jsonl")]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1]


CLOCK = {"t", "attempt", "tokens_per_second", "step_seconds", "mfu", "memory_mib"}


def test_killed_before_its_publication_a_run_knows_its_metrics(tmp_path: Path) -> None:
    """All of them, those of the clock too: no step is taken again, nothing is measured again."""
    heldout = corpora.rows(tmp_path / "heldout", documents=12, seed=9)
    calls: list[int] = []

    def milestone(step: int, tokens: int) -> dict[str, float]:
        calls.append(step)
        return {"milestone/accuracy": 0.25}

    more: dict[str, Any] = {"heldout": heldout, "milestone": milestone}
    first = corpora.training(tmp_path, {}, **more).run()
    again = corpora.training(tmp_path, {}, **more).run()
    assert again == first
    assert first["milestone/accuracy"] == 0.25
    assert math.isfinite(first["loss"])
    assert first["tokens_per_second"] > 0 < first["mfu"]
    assert calls == [12]


def test_the_rate_that_was_used_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    real = loop.train_step

    def step(*args: Any, **facts: Any) -> Any:
        used.append(facts["rate"])
        return real(*args, **facts)

    monkeypatch.setattr(loop, "train_step", step)
    config = {
        "schedule": "constant",
        "lr": 1e-3,
        "restart": {"at": 6, "restore": "no-optimizer", "rewarm": 4},
    }
    corpora.training(tmp_path, config, {"log_every": 1}).run()
    logged = [row["train/lr"] for row in events.read_metrics(tmp_path / "log" / "events.jsonl")]
    assert logged == used
    assert logged[5:11] == pytest.approx([1e-3, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize("change", [{"steps": 24}, {"lr": 1e-4}, {"schedule": "wsd"}, {"warmup": 0}])
def test_length_and_schedule_are_fixed_at_the_first_launch(change: dict[str, Any], tmp_path: Path) -> None:
    """A run of another length is another run: going on would bend the curve at the seam."""
    config = {"steps": 12, "lr": 1e-3}
    training = stopped(tmp_path, 5, config)
    before = [p.clone() for p in training.decoder.parameters()]
    other = corpora.training(tmp_path, {**config, **change})
    weights = [p.clone() for p in other.decoder.parameters()]
    name = next(iter(change))
    with pytest.raises(
        ShunterError, match=rf"another configuration \(train\.{name} was .*, is {change[name]}"
    ):
        other.run()
    assert all(torch.equal(a, b) for a, b in zip(weights, other.decoder.parameters(), strict=True))
    again = corpora.training(tmp_path, config, {"log_every": 1})
    again.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, again.decoder.parameters(), strict=True))
    rows = events.read_metrics(tmp_path / "log" / "events.jsonl")
    assert [row["train/lr"] for row in rows] == [rate(again.config, step) for step in range(5, 12)]


def test_a_checkpoint_from_before_these_were_saved_opens(tmp_path: Path) -> None:
    stopped(tmp_path, 5, {})
    (path,) = (tmp_path / "work" / "checkpoints").glob("step-*/manifest.json")
    manifest = json.loads(path.read_text())
    for name in ("spikes", "tally", "final", "config", "generator"):
        del manifest["extra"][name]
    path.write_text(json.dumps(manifest))
    metrics = corpora.training(tmp_path, {}).run()
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("config", "with_heldout"),
    [
        ({"lr": 1e38, "optimizer": "adamw"}, True),
        ({"lr": 1e38, "optimizer": "adamw"}, False),
        ({"lr": 1e20, "optimizer": "muon"}, True),
    ],
)
def test_a_diverged_model_is_refused_and_its_run_stays(
    config: dict[str, Any], with_heldout: bool, tmp_path: Path
) -> None:
    heldout = corpora.rows(tmp_path / "heldout", documents=12, seed=9) if with_heldout else None

    def milestone(step: int, tokens: int) -> dict[str, float]:
        training = attempts[-1]
        assert all(bool(p.isfinite().all()) for p in training.decoder.parameters()), "a sample of nothing"
        return {}

    attempts: list[Training] = []
    whole = {"warmup": 0, "schedule": "constant", "validate_every": 1, "max_skipped": 100, **config}
    for _ in range(2):
        attempts.append(corpora.training(tmp_path, whole, heldout=heldout, milestone=milestone))
        with pytest.raises(ShunterError, match="the loss of the trained model is not finite"):
            attempts[-1].run()
    first, second = attempts
    assert first.checkpointer.steps()[-1] == second.session.step == 12
    assert len(told(tmp_path, "resume")) == 1
    best = second.session.best
    assert best is None or math.isfinite(best)
    json.dumps(second.session.extra(), allow_nan=False)


def test_one_validation_that_is_not_finite_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = corpora.rows(tmp_path / "heldout", documents=12, seed=9)
    real: Callable[..., tuple[float, float]] = loop.validate
    calls: list[int] = []

    def validate(*args: Any) -> tuple[float, float]:
        calls.append(1)
        return (math.nan, math.nan) if len(calls) == 2 else real(*args)

    monkeypatch.setattr(loop, "validate", validate)
    training = corpora.training(tmp_path, {"validate_every": 4}, heldout=heldout)
    metrics = training.run()
    assert math.isfinite(metrics["heldout_loss"])
    assert training.session.best == metrics["heldout_loss"]
    (problem,) = told(tmp_path, "problem")
    assert (problem["problem"], problem["loss"]) == ("the loss of the model is not finite", "nan")
