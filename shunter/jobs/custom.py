"""The job `custom`: a person's own model and task, from a Python file, on one process or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.jobs import ranks
from shunter.recipe.job import JobConfig, JobContext
from shunter.record.track import check_trackers
from shunter.train.config import TrainHow
from shunter.train.task import source
from shunter.train.task.config import TaskConfig, check_parallel


class CustomConfig(JobConfig):
    """Trains the model that a Python file defines, on the examples that it defines."""

    file: str = Field(description="The Python file: model, train, collate, loss, predict, ...; it is run.")
    files: list[str] = Field(
        default_factory=list,
        description="Files that it reads, beside the modules it imports: a change makes another job.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="What the file finds under the name `settings`."
    )
    train: TaskConfig = Field(default_factory=TaskConfig, description="How long, how fast.")
    how: TrainHow = Field(default_factory=TrainHow, description="Choices that must not change the result.")


class CustomJob:
    """Writes `model.safetensors`, `metrics.json`, and `predictions.jsonl` of the held-out examples."""

    kind: ClassVar[str] = "custom"
    produces: ClassVar[str] = "trained"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = CustomConfig

    def check(self, config: CustomConfig, base: Path) -> Sequence[str]:
        check_trackers(config.how.track)
        check_parallel(config.how)
        self.reads(config, base)
        source.check(base / config.file)
        return []

    def reads(self, config: CustomConfig, base: Path) -> Sequence[Path]:
        found = [base / name for name in (config.file, *config.files)]
        for path in found:
            if not path.is_file():
                raise ShunterError(
                    "there is no such file", where=str(path), mend="Name it from the recipe's folder."
                )
        return list(dict.fromkeys([*found, *source.beside(base / config.file)]))

    def run(self, context: JobContext[CustomConfig]) -> dict[str, Any]:
        parallel = context.config.how.parallel
        if parallel is not None and context.world is None and ranks.processes(parallel) > 1:
            return ranks.spread(context, parallel)
        from shunter.layout.grid import Grid
        from shunter.parallel.mesh import ProcessGroups
        from shunter.train.device import choose_device
        from shunter.train.task.face import load
        from shunter.train.task.run import Place, TaskRun
        from shunter.train.world import World

        config = context.config
        world = context.world
        if world is None:
            world = World.create(Grid(), 0, choose_device(config.how.device), ProcessGroups())
        assert isinstance(world, World)
        place = Place(context.work, context.log, context.events, context.control)
        file = context.base / config.file
        task = load(file, config.settings)
        with source.told(file):
            run = TaskRun(task, config.train, config.how, place, world, seed=config.seed)
            metrics = run.run()
            run.write(context.out)
            run.write_outputs(context.out)
        if world.rank == 0:
            (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        return metrics


JOB = CustomJob()
