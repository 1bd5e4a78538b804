"""The job `stream`: tasks that sleep, run in turns, streamed, or with weights that are a step older."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.config.seed import derive_seed
from shunter.recipe.job import How, JobConfig, JobContext


class StreamHow(How):
    """How to measure."""

    timeout: float = Field(120.0, gt=0, description="Seconds after which a task that is silent is given up.")


class StreamConfig(JobConfig):
    """Tries a way to run tasks side by side, with sleeps in the place of work."""

    mode: Literal["sequential", "queue", "delayed"] = Field(
        "delayed",
        description="sequential: one task after the other; queue: rows as they become ready; delayed: and "
        "rows may be written with weights that are a step older.",
    )
    steps: int = Field(8, ge=2, description="Steps, each with an update of the weights.")
    rows: int = Field(32, ge=1, description="Rows in a step.")
    workers: int = Field(4, ge=1, description="Writers side by side.")
    staleness: int = Field(1, ge=0, description="delayed: how many steps older the weights may be.")
    rollout: float = Field(0.04, gt=0, description="Median seconds to write a row.")
    spread: float = Field(0.6, ge=0, description="Deviation of its logarithm.")
    reference: float = Field(0.006, gt=0, description="Seconds to score a row with the reference.")
    reward: float = Field(0.004, gt=0, description="Seconds to grade a row.")
    update: float = Field(0.009, gt=0, description="Seconds to learn from a row.")
    send: float = Field(0.08, ge=0, description="Seconds until new weights are with the writers.")
    how: StreamHow = Field(default_factory=StreamHow, description="How to measure.")


class StreamJob:
    """Writes `stream.json`: rows a second, idle share, staleness, and when what began and ended.

    What it makes is a measurement of the machine that made it; a new one takes `--redo`.
    """

    kind: ClassVar[str] = "stream"
    produces: ClassVar[str] = "stream"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = StreamConfig

    def check(self, config: StreamConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[StreamConfig]) -> dict[str, Any]:
        from shunter.post.stream import Task, run

        config = context.config
        seen: list[tuple[int, int]] = []

        def rollout(step: int, number: int, version: int) -> dict[str, Any]:
            draw = random.Random(derive_seed(config.seed, "row", step, number))
            seconds = config.rollout * draw.lognormvariate(0.0, config.spread)
            time.sleep(seconds)
            return {"answer": seconds}

        def each(seconds: float, name: str) -> Any:
            def work(rows: Sequence[Any]) -> list[dict[str, Any]]:
                time.sleep(seconds * len(rows))
                return [{name: 0.0} for _ in rows]

            return work

        def update(step: int, rows: Sequence[Any]) -> None:
            time.sleep(config.update * len(rows))
            seen.extend((row["step"], row["number"]) for row in rows)

        tasks = [
            Task("reference", ["answer"], ["reference"], each(config.reference, "reference"), 4),
            Task("reward", ["answer"], ["reward"], each(config.reward, "reward"), 4),
        ]
        told = run(
            config.mode,
            config.steps,
            config.rows,
            rollout,
            tasks,
            update,
            workers=config.workers,
            update_reads=["number", "reference", "reward"],
            update_batch=4,
            send=lambda version: time.sleep(config.send),
            staleness=config.staleness,
            timeout=config.how.timeout,
        )
        workers = {"rollout": config.workers, "reference": 1, "reward": 1, "update": 1}
        busy = {name: seconds for name, seconds in told.busy.items() if name in workers}
        asleep = sum(busy.values()) / (told.seconds * sum(workers.values()))
        found = {
            "rows_per_second": told.rows / told.seconds,
            "idle": 1.0 - asleep,
            "max_staleness": max(told.staleness),
            "mean_staleness": sum(told.staleness) / len(told.staleness),
            "once": float(len(seen) == len(set(seen)) == config.steps * config.rows),
            "most_live": told.most_live,
        }
        text = json.dumps({**found, "order": sorted(told.order)}, indent=1)
        (context.out / "stream.json").write_text(text + "\n", encoding="utf-8")
        return found


JOB = StreamJob()
