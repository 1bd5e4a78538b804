"""Trackers: what is written can be read back by the service's own reader, once a step."""

import importlib.util
import math
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.record import track
from shunter.record.track import Tracker, check_trackers, open_trackers


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    return [(event.step, event.value) for event in log.Scalars(tag)]


def test_tensorboard_round_trip(tmp_path):
    tracker = open_trackers(["tensorboard"], tmp_path, "base", {})
    for step in range(1, 6):
        tracker.metrics(step, {"train/loss": 1 / step, "train/tokens": step, "note": "text", "ok": True})
    tracker.close()
    tracker.close()
    assert scalars(tmp_path / "tensorboard", "train/loss") == [
        (step, pytest.approx(1 / step)) for step in range(1, 6)
    ]
    assert tracker.failures == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from shunter.record.track import open_trackers
tracker = open_trackers(["tensorboard"], Path(sys.argv[1]), "base", {})
for step in range(1, 8):
    tracker.metrics(step, {"loss": 100.0 + step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_attempt_is_readable_and_the_resumed_one_replaces_its_steps(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "loss")] == list(range(1, 8))
    resumed = open_trackers(["tensorboard"], tmp_path, "base", {})
    for step in range(5, 10):
        resumed.metrics(step, {"loss": 200.0 + step})
    resumed.close()
    points = scalars(tmp_path / "tensorboard", "loss")
    assert [step for step, _ in points] == list(range(1, 10))
    assert (points[3], points[4]) == ((4, 104), (5, 205))


def test_not_finite_values_do_not_stop_tensorboard(tmp_path):
    tracker = open_trackers(["tensorboard"], tmp_path, "base", {})
    tracker.metrics(1, {"loss": math.nan})
    tracker.close()
    assert math.isnan(scalars(tmp_path / "tensorboard", "loss")[0][1])


def test_unknown_and_missing_trackers_are_refused_before_any_work(monkeypatch, tmp_path):
    with pytest.raises(ShunterError, match=r"tensorbord.*tensorboard, wandb, mlflow"):
        check_trackers(["tensorbord"])
    monkeypatch.setitem(track.PACKAGES, "wandb", ("no_such_package_at_all", "wandb"))
    with pytest.raises(MissingExtra, match=r"shunter\[wandb\]"):
        open_trackers(["tensorboard", "wandb"], tmp_path, "base", {})
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_fails_is_named_and_the_others_go_on():
    class Sink:
        def __init__(self, fails):
            self.fails, self.steps, self.closed = fails, [], 0

        def metrics(self, step, values):
            if self.fails:
                raise ConnectionError("away")
            self.steps.append(step)

        def close(self):
            self.closed += 1

    good, bad = Sink(False), Sink(True)
    tracker = Tracker({"bad": bad, "good": good})
    with pytest.warns(RuntimeWarning, match=r"tracker bad failed.*away"):
        tracker.metrics(1, {"loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.metrics(2, {"loss": 1.0})
    tracker.close()
    assert (good.steps, good.closed, bad.closed) == ([1, 2], 1, 1)
    assert tracker.failures == {"bad": "ConnectionError: away"}


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_keeps_one_run_an_attempt(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    for first in (1, 3):
        tracker = open_trackers(["mlflow"], tmp_path, "base", {"train": {"lr": 3e-4}})
        for step in range(first, first + 4):
            tracker.metrics(step, {"train/loss": 1.0 / step, "bad": math.nan})
        tracker.close()
        assert tracker.failures == {}
    client = MlflowClient(f"sqlite:///{(tmp_path / 'mlflow' / 'mlflow.db').resolve()}")
    runs = client.search_runs([client.get_experiment_by_name("base").experiment_id])
    assert {run.info.run_name for run in runs} == {"base attempt 1", "base attempt 2"}
    for run in runs:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == sorted(set(steps))
        assert len(steps) == 4
        assert run.data.params == {"train.lr": "0.0003"}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_is_offline_and_keeps_one_run_an_attempt(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for first in (1, 3):
        tracker = open_trackers(["wandb"], tmp_path, "base", {"train": {"lr": 3e-4}})
        for step in range(first, first + 4):
            tracker.metrics(step, {"train/loss": 1.0 / step})
        tracker.close()
        assert tracker.failures == {}
    kept = list((tmp_path / "wandb" / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.stat().st_size > 0 for path in kept] == [True, True]


class Recorder:
    """Stands for any object of a tracker's package: remembers each call by name, with what it was given."""

    def __init__(self, calls, name="", results=None):
        self._calls, self._name, self._results = calls, name, results or {}

    def __getattr__(self, name):
        return Recorder(self._calls, f"{self._name}.{name}".lstrip("."), self._results)

    def __call__(self, *args, **more):
        self._calls.append((self._name, args, more))
        return self._results.get(self._name, self)


def test_what_wandb_is_told(tmp_path, monkeypatch):
    """With a stand-in. That W&B takes the calls, the test above shows where it is installed."""
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", Recorder(calls))
    monkeypatch.setattr(track, "check_trackers", lambda names: None)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for attempt in (1, 2):
        tracker = open_trackers(["wandb"], tmp_path, "base", {"train": {"lr": 3e-4}})
        tracker.metrics(attempt, {"train/loss": 0.5, "note": "text"})
        tracker.close()
        assert tracker.failures == {}
        (tmp_path / "wandb" / "wandb" / f"offline-run-{attempt}").mkdir(parents=True)
    begun = [more for name, _, more in calls if name == "init"]
    assert [(one["name"], one["group"], one["mode"]) for one in begun] == [
        ("base attempt 1", "base", "offline"),
        ("base attempt 2", "base", "offline"),
    ]
    assert begun[0]["config"] == {"train": {"lr": 3e-4}}
    assert begun[0]["dir"] == str(tmp_path / "wandb")
    assert [(args, more) for name, args, more in calls if name == "init.log"] == [
        (({"train/loss": 0.5},), {"step": step}) for step in (1, 2)
    ]
    assert sum(name == "init.finish" for name, _, _ in calls) == 2


def test_what_mlflow_is_told(tmp_path, monkeypatch):
    """As above."""
    calls = []
    known = {
        "MlflowClient.get_experiment_by_name": None,
        "MlflowClient.create_experiment": "7",
        "MlflowClient.search_runs": ["an earlier attempt"],
    }
    client = Recorder(calls, "MlflowClient", known)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", Recorder(calls, "", {"MlflowClient": client}))
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=lambda *values: values))
    monkeypatch.setattr(track, "check_trackers", lambda names: None)
    tracker = open_trackers(["mlflow"], tmp_path, "base", {"train": {"lr": 3e-4}, "kind": "pretrain"})
    tracker.metrics(5, {"train/loss": 0.5, "bad": math.nan})
    tracker.close()
    assert tracker.failures == {}
    told = {name.removeprefix("MlflowClient."): (args, more) for name, args, more in calls}
    assert told["MlflowClient"][0] == (f"sqlite:///{(tmp_path / 'mlflow' / 'mlflow.db').resolve()}",)
    assert told["create_run"] == (("7",), {"run_name": "base attempt 2"})
    parameters = [args[1:] for name, args, _ in calls if name.endswith("log_param")]
    assert parameters == [("train.lr", "0.0003"), ("kind", "pretrain")]
    ((name, value, _, step),) = told["log_batch"][1]["metrics"]
    assert (name, value, step) == ("train/loss", 0.5, 5), "MLflow takes no nan"
    assert "set_terminated" in told
