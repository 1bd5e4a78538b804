"""Weights that travel in bfloat16: the products take them so anyway, so the training is the same to the bit.

On one layout; across layouts bfloat16 itself rounds sums otherwise. Bytes: test_layout_traffic.py.
What this cannot show: NCCL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.jobs.training import check_parallel
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups
from shunter.train.config import Parallel, TrainConfig, TrainHow
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.step import train_step
from shunter.train.world import World
from tests.draws import layout, some
from tests.parallel.pool import GROUPS, Pool
from tests.train import layouts
from tests.train.checkpoint.saving import EXPERTS, SPEC

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"fsdp": 2, "microbatches": 2}, {"experts": None}),
    ({"fsdp": 2, "tp": 2, "microbatches": 1, "recompute": "full", "reshard": False}, {"experts": None}),
    ({"fsdp": 4, "ep": 2, "microbatches": 2}, {"experts": EXPERTS}),
    ({"fsdp": 4, "microbatches": 2, "recompute": "selective"}, {"experts": EXPERTS}),
]


def trained(
    rank: int, groups: Groups, case: tuple[dict[str, Any], dict[str, Any], str]
) -> tuple[list[float], dict[str, Tensor] | None]:
    written, changed, gather = case
    parallel = Parallel(**written, gather=gather)  # type: ignore[arg-type]
    world = World.create(parallel.grid, rank, layouts.CPU, GROUPS)
    torch.manual_seed(0)
    decoder = Decoder(DecoderSpec(**{**SPEC, **changed}))
    passes = LaidOutPasses(decoder, parallel, world, 8)
    passes.precision = "bf16"
    optimizers = Optimizers(passes.decoder, TrainConfig(steps=3, optimizer="adamw"), passes.part)
    whole = layouts.Case(
        spec={**SPEC, **changed}, parallel=written, rows=9, length=8, z_loss=0.0, ragged=True, seed=1
    )
    found = []
    for step in range(3):
        ids = split(split(np.arange(9), world.data.size)[world.data.index], parallel.parts)
        batches = [layouts.take(layouts.batch(whole, step), part) for part in ids]
        result = train_step(passes, optimizers, CrossEntropy(), batches, step=step, rate=1e-2, clip=0.5)
        found += [result.loss, result.grad_norm]
    return found, passes.whole(passes.part.state)


@some(("written", "changed"), CASES, by=layout)
def test_the_same_bits(pool: Pool, written: dict[str, Any], changed: dict[str, Any]) -> None:
    grid = Parallel(**written).grid
    expected, found = (
        pool.run(trained, grid.size, (written, changed, gather), grid) for gather in ("fp32", "bf16")
    )
    assert [numbers for numbers, _ in found] == [numbers for numbers, _ in expected]
    weights, others = found[0][1], expected[0][1]
    assert weights is not None
    assert others is not None
    assert all(torch.equal(weights[name], tensor) for name, tensor in others.items())


@pytest.mark.parametrize(
    ("written", "precision", "says"),
    [
        ({"fsdp": 2}, "fp32", "products of precision fp32 take weights whole"),
        ({"fsdp": 2, "pp": 2}, "bf16", "would round gradients, which stages add up"),
    ],
)
def test_where_it_would_round_it_is_refused(written: dict[str, Any], precision: str, says: str) -> None:
    spec = DecoderSpec(**{**SPEC, "experts": None})
    parallel = Parallel(**written, gather="bf16")
    train = TrainConfig.model_validate({"steps": 1, "precision": precision})
    shape = type(
        "Shape", (), {"model_dump": lambda self: spec.model_dump(exclude={"vocab_size", "max_positions"})}
    )
    with pytest.raises(ShunterError, match=says):
        check_parallel(TrainHow(parallel=parallel), parallel, train, shape())  # type: ignore[arg-type]
