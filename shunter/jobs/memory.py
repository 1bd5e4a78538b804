"""The job `memory-samples`: peak bytes of small layouts, executed stage by stage, to train an estimator
on."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.recipe.job import JobConfig, JobContext

if TYPE_CHECKING:
    from shunter.parallel.live import Sample

DEGREES = (1, 2, 4, 8)


class MemoryConfig(JobConfig):
    """Draws layouts of small models and measures the bytes that are alive on their fullest rank."""

    devices: list[int] = Field(min_length=1, description="Numbers of devices to draw from.")
    count: int = Field(60, ge=1, description="Layouts.")
    layers: list[int] = Field([4, 8], description="Numbers of layers to draw from.")
    widths: list[int] = Field([64, 96, 128], description="Widths to draw from; multiples of 16.")


class MemoryJob:
    """Writes `samples.json`: each layout with its `peak`. Tensor parallelism is one rank's part, alone."""

    kind: ClassVar[str] = "memory-samples"
    produces: ClassVar[str] = "memory-samples"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = MemoryConfig

    def check(self, config: MemoryConfig, base: Path) -> Sequence[str]:
        if any(count < 1 for count in config.devices) or any(
            width < 16 or width % 16 for width in config.widths
        ):
            raise ShunterError("devices are from 1 on, widths multiples of 16")
        if any(layers < 1 for layers in config.layers):
            raise ShunterError("layers are from 1 on")
        return []

    def run(self, context: JobContext[MemoryConfig]) -> dict[str, Any]:
        import torch

        from shunter.parallel.live import measured_peak

        config = context.config
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = [
                {**dataclasses.asdict(sample), "peak": measured_peak(sample)} for sample in drawn(config)
            ]
        finally:
            torch.set_num_threads(threads)
        (context.out / "samples.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        return {"samples": len(found), "largest_bytes": max(int(each["peak"]) for each in found)}


def drawn(config: MemoryConfig) -> list[Sample]:
    """Layouts by the seed."""
    from shunter.parallel.live import Sample

    draw = random.Random(config.seed)
    found: list[Sample] = []
    while len(found) < config.count:
        devices, layers = draw.choice(config.devices), draw.choice(config.layers)
        pp, tp = draw.choice(DEGREES), draw.choice(DEGREES[:3])
        width, rows, rounds = draw.choice(config.widths), draw.choice(DEGREES[:3]), draw.choice(DEGREES[:3])
        if devices % (pp * tp) or layers % pp:
            pp, tp = 1, 1  # fits always
        dp = devices // (pp * tp)
        found.append(Sample(layers, width, 4, pp, tp, dp, rows, rows * dp * rounds))
    return found


JOB = MemoryJob()
