"""Layers that are computed again where their weights are gathered and given up around them.

Any kind of recomputation, with experts or without, under each schedule: the losses, gradients and weights of
one process in float64, and in float32 the very bits of the same layout without recomputation, also after
passes without gradients in between. What this cannot show: kernels of a GPU, and NCCL.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shunter.parallel.mesh import Groups
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool
from tests.train import layouts
from tests.train.layouts import CPU, Case
from tests.train.test_layouts import check

SCHEDULES = ("1f1b", "interleaved-1f1b", "zbv", "zb1p", "gpipe")
GRIDS: list[dict[str, int]] = [
    {"pp": 2, "fsdp": 2},
    {"fsdp": 4},
    {"fsdp": 2, "dp": 2},
    {"fsdp": 2, "ep": 2, "pp": 2},
    {"fsdp": 2, "cp": 2, "ep": 2},
]
SPEC = {
    "dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "ffn_dim": 9, "vocab_size": 29,
    "max_positions": 64, "qk_norm": True,
}  # fmt: skip
MIXTURE = {"num_experts": 4, "per_token": 2, "ffn_dim": 4, "dense_first": 1, "balance_loss": 0.05}


def case(
    grid: dict[str, int],
    schedule: str,
    recompute: Any,
    experts: dict[str, Any] | None,
    microbatches: int = 2,
    *,
    reshard: bool = False,
    tied: bool = False,
    seed: int = 1,
) -> Case:
    """As small as it can be for the number of stages."""
    degrees = dict.fromkeys(layouts.ALL, 1) | grid
    if degrees["pp"] == 1:
        schedule = "1f1b"
    if experts is None:
        degrees["ep"] = 1
    stages = degrees["pp"] * (2 if schedule in ("zbv", "interleaved-1f1b") else 1)
    if schedule == "zbv":
        microbatches, tied = max(microbatches, 4), False  # whose two ends would be gathered as one
        recompute = "full" if recompute is True else recompute
    if schedule == "interleaved-1f1b":
        microbatches += microbatches % 2
    spec = {**SPEC, "num_layers": max(3, stages), "tied": tied, "experts": experts}
    parallel = {
        **degrees, "schedule": schedule, "microbatches": microbatches, "recompute": recompute,
        "reshard": reshard,
    }  # fmt: skip
    rows = degrees["dp"] * degrees["fsdp"] * microbatches + 1
    return Case(spec, parallel, rows, 8, 0.01, True, seed)


@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
def test_selective_recomputation_of_experts_that_are_sharded_within_a_stage(
    pool: Pool, schedule: str
) -> None:
    """Their hooks run within the layer that is computed again."""
    check(pool, case(GRIDS[0], schedule, "selective", MIXTURE, 3))


DRAWN = st.builds(
    case,
    st.sampled_from(GRIDS),
    st.sampled_from(SCHEDULES),
    st.sampled_from(["selective", "full", [0, 2], True]),
    st.one_of(st.none(), st.builds(
        lambda capacity, shared: {**MIXTURE, "capacity": capacity, **shared},
        st.sampled_from([None, 1.0]),
        st.sampled_from([{}, {"router": "sigmoid", "shared_ffn_dim": 8, "bias_update": 0.01}]),
    )),
    st.integers(1, 4),
    reshard=st.booleans(),
    tied=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip


@settings(max_examples=3)
@given(case=DRAWN)
def test_kinds_of_recomputation_under_schedules(pool: Pool, case: Case) -> None:
    check(pool, case)


@pytest.mark.long
def test_all_kinds_under_all_schedules_and_a_hundred_drawn(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: Counter[str] = Counter()

    def look(case: Case) -> None:
        check(pool, case)
        parallel = case.parallel
        names = {"schedule": parallel["schedule"], "recompute": str(parallel["recompute"])}
        seen.update([*names.values(), "experts" if case.spec["experts"] else "dense"])

    for schedule, kind, experts in product(SCHEDULES, ("selective", "full", [1]), (None, MIXTURE)):
        look(case(GRIDS[0], schedule, kind, experts, 4))

    @settings(max_examples=100)
    @given(case=DRAWN)
    def run(case: Case) -> None:
        look(case)

    run()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:18} {count}" for name, count in seen.most_common()))


def bits(rank: int, groups: Groups, cases: list[Case]) -> list[list[Tensor]]:
    """Of each case the gradients of two steps in float32, with a pass without gradients between them."""
    found = []
    for case in cases:
        parallel = case.layout
        world = World.create(parallel.grid, rank, CPU, GROUPS)
        passes = LaidOutPasses(layouts.model(case).float(), parallel, world, case.width)

        def parts(ids: np.ndarray, world: World = world, count: int = parallel.parts) -> list[np.ndarray]:
            return split(split(ids, world.data.size)[world.data.index], count)

        mine: list[Tensor] = []
        for _ in range(2):
            layouts.gradients(case, passes, parts, case.width)
            mine += [p.grad.clone() for p in passes.parameters.values() if p.grad is not None]
            for parameter in passes.parameters.values():
                parameter.grad = None
            whole = layouts.batch(case, 1, case.width)
            passes.loss([whole], [torch.ones(whole.targets.shape)])
        found.append(mine)
    return found


@pytest.mark.parametrize("experts", [{**MIXTURE, "ffn_dim": 8}, None], ids=["experts", "dense"])
def test_the_same_bits_with_and_without(pool: Pool, experts: dict[str, Any] | None) -> None:
    one = case(GRIDS[0], "1f1b", False, experts, 3)
    kinds = [
        replace(one, parallel={**one.parallel, "recompute": kind}) for kind in (False, "full", "selective")
    ]
    for plain, *others in pool.run(bits, 4, kinds, one.layout.grid):
        assert plain
        for each in others:
            assert len(each) == len(plain)
            assert all(torch.equal(a, b) for a, b in zip(plain, each, strict=True))
