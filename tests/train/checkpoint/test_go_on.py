"""A run that goes on under another layout learns what one that was never interrupted learns.

Each pair is of two layouts: some steps under the first, a checkpoint, and more under the second. Losses,
norms and the weights at the end are held against one process that took all the steps. In float64, where a
moment that stands in the wrong place cannot hide behind rounding. What this cannot show: a file system that
is slow to agree, and what float32 leaves of such an equality.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from torch import Tensor
from torch.optim import _muon

from shunter.parallel.mesh import Groups
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass, Passes
from shunter.train.shares import split
from shunter.train.step import train_step
from tests.parallel.pool import Pool
from tests.train import layouts
from tests.train.checkpoint import saving
from tests.train.checkpoint.saving import PAIRS, Held
from tests.train.layouts import CPU, Case

FIRST = 2  # steps before the checkpoint
SOME = {"fsdp": ("tp",), "zero, tp": ("pp x fsdp",), "ep": ("zero, ep",)}
MUON = {
    "fsdp": ("zero",),
    "tp": ("fsdp",),
    "zero, tp": ("tp", "one"),
    "ep": ("zero, ep",),
    "zero": ("pp x tp",),
}


@dataclass(frozen=True)
class Leg:
    """Steps from `begin`, whose checkpoint is there unless it is 0, to `end`, which is saved if `kept`."""

    case: Case
    folder: Path
    begin: int
    end: int
    kept: bool = False


@dataclass(frozen=True)
class Walked:
    """told: loss and norm of each step. weights: at the end, on rank 0."""

    told: list[float]
    weights: dict[str, Tensor]


def steps(case: Case, passes: Passes, optimizers: Optimizers, parts: Any, which: range) -> list[float]:
    found = []
    for step in which:
        batches = [layouts.take(layouts.batch(case, step), ids) for ids in parts(np.arange(case.rows))]
        with mock.patch.object(_muon, "_zeropower_via_newtonschulz", layouts.orthogonal):
            result = train_step(
                passes,
                optimizers,
                CrossEntropy(),
                batches,
                step=step,
                rate=1e-3,
                clip=1.0,
                z_loss=case.z_loss,
            )
        found += [result.loss, result.grad_norm]
    return found


def walk(rank: int, groups: Groups, leg: Leg) -> Walked:
    case = leg.case
    held = Held(rank, case, leg.folder)
    if leg.begin:
        held.checkpointer.load(leg.begin, held.state)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        data = held.world.data
        return split(split(ids, data.size)[data.index], case.layout.parts)

    found = steps(case, held.passes, held.optimizers, parts, range(leg.begin, leg.end))
    if leg.kept:
        held.checkpointer.save(leg.end, held.state, {})
    return Walked(found, held.passes.whole(held.passes.part.state) or {})


@cache
def uninterrupted(optimizer: str, end: int) -> Walked:
    """In one process; `told` of all steps."""
    case = saving.case("one", optimizer)
    decoder = layouts.model(case)
    passes, optimizers = OnePass(decoder, decoder, CPU, "fp32"), Optimizers(decoder, layouts.config(case))
    told = steps(case, passes, optimizers, lambda ids: [ids], range(end))
    return Walked(told, {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()})


def go_on(
    pool: Pool, folder: Path, source: str, targets: tuple[str, ...], more: int, optimizer: str = "adamw"
) -> None:
    expected = uninterrupted(optimizer, FIRST + more)

    def run(name: str, begin: int, end: int, kept: bool) -> list[Walked]:
        case = saving.case(name, optimizer)
        grid = case.layout.grid
        return pool.run(walk, grid.size, Leg(case, folder, begin, end, kept), grid)

    run(source, 0, FIRST, True)
    for target in targets:
        found = run(target, FIRST, FIRST + more, False)
        for each in found:
            # Sums in another order: float64 leaves 1e-16 of each, and Adam's quotients some more.
            assert each.told == pytest.approx(expected.told[2 * FIRST :], rel=1e-10), (source, target)
        assert found[0].weights.keys() == expected.weights.keys()
        for name, tensor in expected.weights.items():
            gap = float((found[0].weights[name] - tensor).abs().max())
            assert gap <= 1e-9 * float(tensor.abs().max()), (source, target, name)


@pytest.mark.parametrize("source", SOME)
def test_some_steps_under_another_layout(pool: Pool, tmp_path: Path, source: str) -> None:
    go_on(pool, tmp_path, source, SOME[source], 2)


@pytest.mark.long
@pytest.mark.parametrize("source", PAIRS)
def test_twenty_steps_under_each_other_layout(
    pool: Pool, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.perf_counter()
    go_on(pool, tmp_path, source, PAIRS[source], 20)
    with capsys.disabled():
        print(f"\n{source} -> {', '.join(PAIRS[source])}: {time.perf_counter() - begin:.1f} s")


@pytest.mark.long
@pytest.mark.parametrize("source", MUON)
def test_twenty_steps_of_muon(pool: Pool, tmp_path: Path, source: str) -> None:
    go_on(pool, tmp_path, source, MUON[source], 20, "muon")
