"""A task from a script of one's own, without a recipe: in this process, or in those that torchrun started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.parallel.mesh import ProcessGroups
from shunter.recipe.control import RunControl
from shunter.recipe.job import Stopped
from shunter.record.events import EventLog, read
from shunter.train.config import TrainHow
from shunter.train.device import choose_device
from shunter.train.task.config import TaskConfig, check_parallel
from shunter.train.task.face import Task
from shunter.train.task.run import Place, TaskRun
from shunter.train.world import World, join


class Fitted:
    """What became of it. metrics: of the best state, where there are held-out examples, else of the last.

    `predict(examples)` gives one output for each, in order. Every process calls it, and `whole`.
    """

    def __init__(self, run: TaskRun, metrics: Mapping[str, Any], folder: Path) -> None:
        self.run, self.metrics, self.folder = run, dict(metrics), folder
        self.predict = run.predict

    def whole(self) -> dict[str, torch.Tensor]:
        """The parameters as one process has them; on every process."""
        return {name: self.run.laid.whole(name) for name in self.run.laid.parameters}

    @property
    def model(self) -> torch.nn.Module:
        """The module, in parts where there are several processes."""
        return self.run.laid.module


def fit(
    task: Task,
    folder: Path | str,
    *,
    seed: int = 0,
    parallel: Mapping[str, Any] | None = None,
    how: Mapping[str, Any] | None = None,
    **train: Any,
) -> Fitted:
    """Train, or go on from the folder's last checkpoint. Writes `model/` into the folder, and `log/`.

    train: keys of a recipe's `train` (epochs, batch, lr, ...); how: of its `how`; parallel: degrees, whose
    product is the number of processes that torchrun started. Raises ShunterError for a key or a degree that
    cannot be; SystemExit after a signal, when the state is saved.
    """
    folder = Path(folder)
    config = parse(TaskConfig, train)
    settings = parse(TrainHow, {**(how or {}), **({"parallel": dict(parallel)} if parallel else {})})
    check_parallel(settings)
    grid = settings.parallel.grid if settings.parallel is not None else Grid()
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size != grid.size:
        raise ShunterError(
            f"the layout has {grid.size} processes, and {size} were started",
            mend=f"Start them with: torchrun --nproc-per-node {grid.size} {Path(sys.argv[0]).name}",
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if size > 1:
        timeout = settings.parallel.timeout if settings.parallel is not None else 600.0
        world = join(grid, rank, settings.device, timeout)
    else:
        world = World.create(grid, 0, choose_device(settings.device), ProcessGroups())
    log = folder / "log" if rank == 0 else folder / "log" / str(rank)
    before = [event.get("attempt", 1) for event in read(log / "events.jsonl")]
    events = EventLog(
        log / "events.jsonl", attempt=max(before, default=0) + 1, listener=_told if rank == 0 else None
    )
    control = RunControl(folder)
    try:
        with control.listening():
            place = Place(folder / "work", log, events, world.shared(control))
            run = TaskRun(task, config, settings, place, world, seed=seed)
            metrics = run.run()
            run.write(folder / "model")
            run.write_outputs(folder / "model")
    except Stopped:
        raise SystemExit(control.code) from None
    finally:
        events.close()
    if rank == 0:
        (folder / "model" / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return Fitted(run, metrics, folder)


def _told(event: dict[str, Any]) -> None:
    """One line for each record of metrics, and for what a person has to know."""
    if event["event"] == "metrics":
        values = "  ".join(f"{name} {value:.4g}" for name, value in event["values"].items())
        print(f"step {event['step']}  {values}", flush=True)
    elif event["event"] in ("resume", "skip"):
        print(f"{event['event']}: step {event['step']}", flush=True)
    for note in event.get("notes", ()):
        print(f"note: {note}", flush=True)
