"""`cut: measured`: rank 0's times decide for all ranks, whatever the others would have measured."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups
from shunter.train import stage_cut
from shunter.train.config import Parallel
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool

SPEC = {
    "dim": 8, "num_layers": 6, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "ffn_dim": 8,
    "vocab_size": 16, "max_positions": 8,
}  # fmt: skip
PARALLEL = {"pp": 2, "cut": "measured", "microbatches": 2}


def bounds(rank: int, groups: Groups, argument: Any) -> tuple[list[int], list[Any]]:
    parallel = Parallel(**PARALLEL)  # type: ignore[arg-type]
    world = World.create(parallel.grid, rank, torch.device("cpu"), GROUPS)
    asked: list[Any] = []

    def times(spec: Any, length: int, rows: int, device: Any, precision: str) -> Any:
        asked.append((length, rows, precision))
        # On rank 0 the head takes as long as four layers; rank 1 would find no head at all.
        return [1.0] * 6, 0.0, 4.0 if rank == 0 else 0.0

    with mock.patch.object(stage_cut, "measured_costs", times):
        passes = LaidOutPasses(
            Decoder(DecoderSpec(**SPEC)), parallel, world, 8, rows=3, precision="bf16"  # type: ignore[arg-type]
        )  # fmt: skip
    return passes.cut, asked


def test_all_ranks_cut_where_rank_0_measures(pool: Pool) -> None:
    (one, asked), (two, unasked) = pool.run(bounds, 2, None, Parallel(**PARALLEL).grid)  # type: ignore[arg-type]
    assert one == two == [0, 5, 6]
    assert asked == [(8, 3, "bf16")]
    assert unasked == []
