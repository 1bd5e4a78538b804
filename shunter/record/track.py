"""Trackers: metrics sent to TensorBoard, Weights & Biases or MLflow beside the JSONL, which stays the truth.

A resumed run repeats the steps since its last checkpoint. TensorBoard is told to forget what the killed
attempt wrote from the first repeated step on, so that a curve has one point a step. W&B (whose offline
runs cannot be continued) and MLflow (which keeps every value of a step) get one run an attempt, all in
one group, so that repeated steps lie on separate curves.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from shunter.config.errors import MissingExtra, ShunterError

# tracker -> (package that must be importable, extra that installs it)
PACKAGES: dict[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "track"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}


class Sink(Protocol):
    """One service that takes the metrics of a step."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """All open trackers of a run as one.

    A tracker that raises is closed and named in `failures` with a warning, and the run goes on: a
    service that is away must not cost a day of training, and nothing is lost, for the JSONL has it.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)
        self.failures: dict[str, str] = {}

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers of one step; what is not a number (a note, None) is for the JSONL only."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name in list(self._sinks):
            self._guard(name, lambda sink: sink.metrics(step, numbers))

    def close(self) -> None:
        """Flush and close every tracker. May be called twice."""
        for name in list(self._sinks):
            self._guard(name, lambda sink: sink.close())
            self._sinks.pop(name, None)

    def _guard(self, name: str, act: Callable[[Sink], None]) -> None:
        try:
            act(self._sinks[name])
        except Exception as error:
            self.failures[name] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"tracker {name} failed and is off for the rest of this attempt "
                f"({self.failures[name]}); the JSONL log is complete",
                RuntimeWarning,
                stacklevel=3,
            )
            sink = self._sinks.pop(name)
            with suppress(Exception):  # it is broken already; what matters is that it lets go of its files
                sink.close()


def chosen(names: Sequence[str] | None) -> Sequence[str]:
    """The trackers that are asked for; where nobody says, TensorBoard if it is there: it needs no account."""
    if names is not None:
        return names
    return ["tensorboard"] if importlib.util.find_spec(PACKAGES["tensorboard"][0]) else []


def check_trackers(names: Sequence[str] | None) -> None:
    """Refuse unknown names and missing packages without importing any of them (before any work)."""
    for name in chosen(names):
        if name not in PACKAGES:
            raise ShunterError(f"unknown tracker {name!r}", mend=f"Use one of {', '.join(PACKAGES)}.")
        package, extra = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra=extra, purpose=f"tracking with {name}")


def open_trackers(names: Sequence[str] | None, folder: Path, run: str, config: Mapping[str, Any]) -> Tracker:
    """Open the trackers (None: see `chosen`), each with its own subfolder of `folder` (made here).

    run:    the name shown to people; the attempts of one run share it.
    config: the plain configuration of the job, stored with the run.
    Raises ShunterError for an unknown name, MissingExtra for a missing package.
    """
    names = chosen(names)
    check_trackers(names)
    makers: dict[str, Callable[[Path, str, Mapping[str, Any]], Sink]] = {
        "tensorboard": TensorBoard,
        "wandb": WandB,
        "mlflow": MLflow,
    }
    sinks: dict[str, Sink] = {}
    for name in dict.fromkeys(names):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        sinks[name] = makers[name](place, run, config)
    return Tracker(sinks)


class TensorBoard:
    """Event files through the tensorboard package's own writer (neither TensorFlow nor torch)."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary import Output, Writer
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        class Scalars(Output):
            """Plain `simple_value` scalars. The default output writes tensors, which EventAccumulator
            shows under `Tensors` only and does not purge after a restart."""

            def __init__(self) -> None:
                self._file = EventFileWriter(str(folder))

            def emit_scalar(
                self,
                *,
                plugin_name: str,
                tag: str,
                data: float,
                step: int,
                wall_time: float,
                tag_metadata: bytes | None = None,
                description: str | None = None,
            ) -> None:
                event = Event(wall_time=wall_time, step=int(step))
                event.summary.value.add(tag=tag, simple_value=float(data))
                self._file.add_event(event)

            def forget_from(self, step: int) -> None:
                """TensorBoard's sign of a restart: readers drop earlier points at `step` and beyond."""
                started = SessionLog(status=SessionLog.START)
                self._file.add_event(Event(wall_time=time.time(), step=step, session_log=started))

            def flush(self) -> None:
                self._file.flush()

            def close(self) -> None:
                self._file.close()

        earlier = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        self._resumed = bool(earlier)
        # Readers take the files in order of name, which begins with the second of their making: two
        # attempts in one second would be read in order of process id.
        now = time.time()
        if earlier and int(max(earlier)) == int(now):
            time.sleep(int(now) + 1 - now)
        self._output = Scalars()
        self._writer = Writer(self._output)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._resumed:
            self._output.forget_from(step)
            self._resumed = False
        now = time.time()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, wall_time=now)
        self._writer.flush()  # a killed attempt leaves its curve up to the last logged step

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run an attempt, in a group named after the run; offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        import wandb

        attempt = 1 + sum(1 for _ in (folder / "wandb").glob("*run-*"))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "shunter"),
            name=f"{run} attempt {attempt}",
            group=run,
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One MLflow run an attempt, in an experiment named after the run.

    Kept in a SQLite file in `folder` (newer MLflow refuses its older store of plain files) unless
    MLFLOW_TRACKING_URI names a server. Open it with `mlflow ui --backend-store-uri sqlite:///FILE`.
    """

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        local = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        known = self._client.get_experiment_by_name(run)
        experiment = known.experiment_id if known else self._new_experiment(run, folder)
        attempt = 1 + len(self._client.search_runs([experiment]))
        self._id = self._client.create_run(experiment, run_name=f"{run} attempt {attempt}").info.run_id
        for key, value in _flat(config).items():
            self._client.log_param(self._id, key, value[:500])  # MLflow's bound on the length of a parameter

    def _new_experiment(self, run: str, folder: Path) -> str:
        where = None if "MLFLOW_TRACKING_URI" in os.environ else folder.resolve().as_uri()
        made: str = self._client.create_experiment(run, artifact_location=where)
        return made

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # MLflow allows letters, digits, "_-. /:" in names, which ours keep to.
        batch = [Metric(name, value, now, step) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._id, metrics=batch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration as dotted keys with JSON values."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
