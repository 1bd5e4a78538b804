"""What a layout of one rank costs: a step of `LaidOutPasses` over a grid of ones by one of the plain trainer.

Both are the same decoder, rows, micro-batches and optimizer, one after the other in one process, one thread.
The ratio is of CPU seconds, which vary less than time on a shared machine; that of time stands beside it.
Above 1.00 the layout costs more. Two widths: what is paid once an action weighs most where layers are small.

`--tiny` tries the code. A result is kept where others left the machine alone.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from bench.measure import alternate, machine, save
from shunter.data.tokens import Batch
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import ProcessGroups
from shunter.train.config import Parallel, TrainConfig
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass, Passes
from shunter.train.pipeline import LaidOutPasses
from shunter.train.step import train_step
from shunter.train.world import World

GOAL = 1.02
CALM = 0.1  # largest share of the machine that others may use while a kept result is measured
CASES = {"128": (128, 4, 4), "512": (512, 6, 4)}  # width, layers, micro-batches
ROWS, LENGTH, VOCABULARY = 4, 128, 4096
CPU = torch.device("cpu")


def spec(dim: int, layers: int) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=VOCABULARY, dim=dim, num_layers=layers, num_heads=dim // 32, num_kv_heads=dim // 64,
        head_dim=32, ffn_dim=dim * 8 // 3 // 32 * 32, max_positions=LENGTH, tied=True,
    )  # fmt: skip


def batch(seed: int) -> Batch:
    draw, shape = np.random.default_rng(seed), (ROWS, LENGTH)
    return Batch(
        draw.integers(VOCABULARY, size=shape),
        draw.integers(VOCABULARY, size=shape),
        np.zeros(shape, np.int32),
        np.broadcast_to(np.arange(LENGTH), shape).copy(),
        np.arange(ROWS),
    )


class Side:
    """A trainer, laid out or not."""

    def __init__(self, shape: DecoderSpec, parts: int, *, laid_out: bool) -> None:
        decoder = Decoder(shape)
        init_weights(decoder, 0)
        self.passes: Passes
        part = None
        if laid_out:
            world = World.create(Grid(), 0, CPU, ProcessGroups())
            parallel = Parallel.model_validate({"microbatches": parts})
            self.passes = passes = LaidOutPasses(decoder, parallel, world, LENGTH)
            part = passes.part
        else:
            self.passes = OnePass(decoder, decoder, CPU, "fp32")
        config = TrainConfig.model_validate({"steps": 1, "optimizer": "adamw"})
        self.optimizers = Optimizers(decoder, config, part)
        self.batches = [batch(seed) for seed in range(parts)]
        self.losses: list[float] = []

    def step(self) -> None:
        result = train_step(
            self.passes, self.optimizers, CrossEntropy(), self.batches, step=0, rate=1e-3, clip=1.0
        )
        self.losses.append(result.loss)


def measure(case: str, rounds: int, limit: float) -> dict[str, Any]:
    dim, layers, parts = CASES[case]
    plain, laid = (Side(spec(dim, layers), parts, laid_out=laid_out) for laid_out in (False, True))
    found = alternate(plain.step, laid.step, rounds, 2, width=0.01, limit=limit)
    assert np.allclose(plain.losses, laid.losses, rtol=1e-4), "not the same training"
    return {"case": case, **found}


def main() -> int:
    """Measure the cases; print, and keep what was measured on a machine left alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to try the code")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    cases = {}
    for case in list(CASES)[:1] if tiny else CASES:
        cases[case] = found = measure(case, 4 if tiny else 20, 5.0 if tiny else 120.0)
        print(
            f"width {case}: {found['cpu_ratio_median']:.3f} of the CPU seconds, {found['ratio_median']:.3f} "
            f"[{found['ratio_low']:.3f}, {found['ratio_high']:.3f}] of the time; goal at most {GOAL}",
            flush=True,
        )
    others = max(found["others"] for found in cases.values())
    if tiny or others > CALM:
        print(f"Others used {others:.0%} of the machine: not kept.")
        return 0
    what = "a step laid out over one rank by one of the plain trainer"
    save("overhead", {"what": what, "goal": GOAL, "cases": cases, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
