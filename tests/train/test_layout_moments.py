"""What a rank is said to hold at its fullest moment is what is alive there, layout by layout.

What this cannot show: what other kernels than those of this CPU make on their way, and masks of rows with
several documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.live import LiveBytes
from shunter.parallel.mesh import Groups
from shunter.train.config import Parallel, TrainConfig
from shunter.train.layout_describe import describe
from shunter.train.layout_parts import Plan
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.recording import local
from shunter.train.step import train_step
from shunter.train.traffic import kept_bytes, states
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool

LENGTH, ROWS = 32, 16
SPEC: dict[str, Any] = {
    "dim": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "ffn_dim": 344,
    "vocab_size": 512, "max_positions": LENGTH, "tied": True,
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"dp": 2, "microbatches": 8},  # fullest when gradients are summed
    {"pp": 2, "microbatches": 4, "recompute": True, "schedule": "gpipe"},
    {"fsdp": 2, "microbatches": 2, "ends": {"tp": 2}},
]
MORE: list[dict[str, Any]] = [
    {"dp": 2, "microbatches": 1},
    {"tp": 2, "microbatches": 1},
    {"fsdp": 2, "microbatches": 4},
    {"dp": 2, "microbatches": 8, "zero": 1},
    {"fsdp": 2, "microbatches": 1},
    {"fsdp": 2, "microbatches": 1, "reshard": False},
    {"cp": 2, "microbatches": 2},
    {"pp": 2, "microbatches": 4},
    {"pp": 2, "microbatches": 2, "fsdp": 2},
    {"tp": 2, "microbatches": 2, "ends": {"fsdp": 2}},
]


def fullest(rank: int, groups: Groups, written: dict[str, Any]) -> int:
    """Bytes of the leanest of three steps after the first one, which makes the optimizer's state: how soon a
    message's memory is given back depends on the thread that carries it."""
    parallel = Parallel(**written)
    world = World.create(parallel.grid, rank, torch.device("cpu"), GROUPS, parallel.others)
    torch.manual_seed(0)
    passes = LaidOutPasses(Decoder(DecoderSpec(**SPEC)), parallel, world, LENGTH)
    optimizers = Optimizers(passes.decoder, TrainConfig(steps=4, optimizer="adamw"), passes.part)
    tokens = np.arange(ROWS // parallel.data // parallel.parts * LENGTH).reshape(-1, LENGTH) % 512
    places = np.tile(np.arange(LENGTH), (len(tokens), 1))
    segments = np.zeros(tokens.shape, dtype=np.int32)
    batch = Batch(tokens, tokens[:, ::-1].copy(), segments, places, np.arange(len(tokens)))
    most = []
    for step in range(4):
        there = [*passes.part.weights.values(), *passes.decoder.parameters(), *states(optimizers)]
        before = sum(kept_bytes(passes.part, optimizers).values())
        with LiveBytes(map(local, there)) as live:
            train_step(
                passes, optimizers, CrossEntropy(), [batch] * parallel.parts, step=step, rate=1e-3, clip=1.0
            )
        most.append(before + live.peak)
    return min(most[1:])


@pytest.mark.parametrize("written", [*CASES, *(pytest.param(it, marks=pytest.mark.long) for it in MORE)])
def test_the_fullest_moment_is_as_told(pool: Pool, written: dict[str, Any]) -> None:
    parallel = Parallel(**written)
    told = describe(Plan.make(DecoderSpec(**SPEC), parallel, LENGTH, ROWS), "adamw", {}).ranks
    found = pool.run(fullest, parallel.grid.size, written, parallel.grid, *parallel.others)
    ratios = [real / rank.total for real, rank in zip(found, told, strict=True)]
    assert all(0.97 < ratio < 1.03 for ratio in ratios), ratios
