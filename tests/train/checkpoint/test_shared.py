"""Checkpoints of one layout under another: each value stays, to the bit, whoever holds it.

What this cannot show: speed, file systems that are shared over a network, and what a real kill leaves behind
(tests/recipe/test_kill.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Groups
from shunter.train.checkpoint import shared
from tests.parallel.pool import Pool
from tests.train.checkpoint import saving
from tests.train.checkpoint.saving import GRIDS, PAIRS, Held
from tests.train.layouts import Case


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
