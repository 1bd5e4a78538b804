"""Checkpoints of one layout under another: each value stays, to the bit, whoever holds it.

What this cannot show: speed, file systems that are shared over a network, and what a real kill leaves behind
(tests/recipe/test_kill.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Groups
from shunter.train.checkpoint import shared
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass, Passes
from shunter.train.shares import split
from shunter.train.step import train_step
from tests.parallel.pool import Pool
from tests.train import layouts
from tests.train.checkpoint import saving
from tests.train.checkpoint.saving import GRIDS, Held
from tests.train.layouts import CPU, Case

# Each is saved once, and loaded under all of its row.
PAIRS = {
    "one": ("pp", "fsdp", "tp", "cp x dp, ep x etp"),
    "pp": ("one", "tp", "fsdp"),
    "dp": ("fsdp", "pp x tp"),
    "fsdp": ("one", "dp", "tp", "pp x fsdp"),
    "cp": ("ep",),
    "tp": ("one", "fsdp", "etp"),
    "ep": ("one", "cp", "etp"),
    "etp": ("ep", "pp"),
    "pp x tp": ("fsdp x tp, ep",),
    "fsdp x tp, ep": ("one", "pp x fsdp", "cp x dp, ep x etp"),
    "pp x fsdp": ("tp",),
    "cp x dp, ep x etp": ("one", "pp x tp"),
}


def run(pool: Pool, task: Any, name: str, folder: Path, **spec: Any) -> list[Any]:
    case = saving.case(name, **spec)
    grid = case.layout.grid
    return pool.run(task, grid.size, (case, folder), grid)


@pytest.mark.parametrize("name", PAIRS)
def test_a_checkpoint_is_read_under_another_layout(pool: Pool, tmp_path: Path, name: str) -> None:
    run(pool, saving.save, name, tmp_path)
    assert saving.load_alone(saving.case("one"), tmp_path) == []
    for other in PAIRS[name]:
        assert run(pool, saving.load, other, tmp_path) == [[]] * saving.case(other).layout.grid.size, other


def test_enough_pairs_are_tried_and_each_axis_on_both_sides() -> None:
    assert sum(map(len, PAIRS.values())) >= 20
    assert PAIRS.keys() == GRIDS.keys() == {name for names in PAIRS.values() for name in names}


def steps(case: Case, passes: Passes, optimizers: Optimizers, parts: Any, which: range) -> list[float]:
    found = []
    for step in which:
        batches = [layouts.take(layouts.batch(case, step), ids) for ids in parts(np.arange(case.rows))]
        result = train_step(
            passes, optimizers, CrossEntropy(), batches, step=step, rate=1e-3, clip=1.0, z_loss=case.z_loss
        )
        found += [result.loss, result.grad_norm]
    return found


def trained(rank: int, groups: Groups, request: tuple[Case, Path, int, int]) -> list[float]:
    """From step `begin` (whose checkpoint is there, unless it is 0) to `end`, which is saved."""
    case, folder, begin, end = request
    held = Held(rank, case, folder)
    if begin:
        held.checkpointer.load(begin, held.state)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        data = held.world.data
        return split(split(ids, data.size)[data.index], case.layout.parts)

    found = steps(case, held.passes, held.optimizers, parts, range(begin, end))
    held.checkpointer.save(end, held.state, {})
    return found


def test_training_goes_on_under_another_layout_as_in_one_process(pool: Pool, tmp_path: Path) -> None:
    """Two steps under each of some layouts, one after the other."""
    go_on(pool, tmp_path, ["fsdp", "tp", "pp"], 2)


@pytest.mark.long
def test_training_goes_on_for_twenty_steps_under_each_layout(pool: Pool, tmp_path: Path) -> None:
    go_on(pool, tmp_path, list(GRIDS), 20)


def go_on(pool: Pool, folder: Path, names: list[str], each: int) -> None:
    alone = saving.case("one")
    decoder = layouts.model(alone)
    passes, optimizers = OnePass(decoder, decoder, CPU, "fp32"), Optimizers(decoder, layouts.config(alone))
    done = 0
    for name in names:
        expected = steps(alone, passes, optimizers, lambda ids: [ids], range(done, done + each))
        case = saving.case(name)
        grid = case.layout.grid
        for found in pool.run(trained, grid.size, (case, folder, done, done + each), grid):
            # Sums in another order: float64 leaves 1e-16 of each, and Adam's quotients some more.
            assert found == pytest.approx(expected, rel=1e-12), name
        done += each


def refused(rank: int, groups: Groups, request: tuple[Case, Path]) -> str:
    held = Held(rank, *request)
    try:
        held.checkpointer.load(1, held.state)
    except ShunterError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize("how", ["missing", "truncated", "manifest"])
def test_a_damaged_shard_is_named_on_all_ranks(pool: Pool, tmp_path: Path, how: str) -> None:
    run(pool, saving.save, "fsdp", tmp_path)
    shard = tmp_path / "step-00000001" / "00001-00000.safetensors"
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    else:
        shard = shard.with_name("manifest.json")
        shard.write_text("{")
    for said in run(pool, refused, "tp", tmp_path):
        assert ("manifest" if how == "manifest" else shard.name) in said
        assert str(shard.parent) in said


def test_a_checkpoint_of_another_model_is_refused_on_all_ranks(pool: Pool, tmp_path: Path) -> None:
    run(pool, saving.save, "fsdp", tmp_path)
    for said in run(pool, refused, "tp", tmp_path, vocab_size=31):
        assert "model.embed.weight" in said
        assert "(29, 8)" in said
        assert "(31, 8)" in said
    for said in run(pool, refused, "tp", tmp_path, num_layers=3):
        assert "the checkpoint lacks" in said
        assert "layers.2" in said


def half_written(rank: int, groups: Groups, request: tuple[Case, Path]) -> tuple[str, list[int], list[str]]:
    """The last rank cannot write; then all can."""
    held = Held(rank, *request)

    def full(*_: Any) -> Any:
        raise OSError("no space left on device")

    broken = full if rank == held.world.size - 1 else shared.write_parts
    said = ""
    with mock.patch.object(shared, "write_parts", broken):
        try:
            held.checkpointer.save(2, held.state, {})
        except (OSError, ShunterError) as error:
            said = str(error)
    held.world.first(1)  # rank 0 has cleaned up
    left = sorted(path.name for path in request[1].iterdir())
    steps = held.checkpointer.steps()
    held.world.first(1)
    held.checkpointer.save(3, held.state, {})
    return said, steps, left


def test_a_rank_that_cannot_write_fails_all_and_the_older_checkpoint_stays(
    pool: Pool, tmp_path: Path
) -> None:
    run(pool, saving.save, "tp", tmp_path)
    (first, _, _), (second, _, _) = answers = run(pool, half_written, "tp", tmp_path)
    assert "rank 1 could not write" in first
    assert "no space left" in first
    assert "no space left on device" in second
    assert [steps for _, steps, _ in answers] == [[1], [1]]
    assert all(left == ["latest", "step-00000001"] for _, _, left in answers)
    assert (tmp_path / "latest").read_text() == "step-00000003"
    assert torch.equal(torch.tensor(shared.Checkpointer(tmp_path).steps()), torch.tensor([1, 3]))
