"""Passes over a pipeline: loss, gradient norm, clipped gradient and held-out loss of one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups, Peers, ProcessGroups
from shunter.record import memory
from shunter.train.config import Parallel, TrainConfig
from shunter.train.objective import CrossEntropy, total
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass, Passes
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.stage_cut import cut_decoder
from shunter.train.step import StepResult, train_step
from shunter.train.validation import validate
from shunter.train.world import World
from tests.draws import layout, some
from tests.parallel.pool import GROUPS, Pool
from tests.train import corpora

CPU = torch.device("cpu")
CLIP, ROWS, Z = 0.1, 7, 0.01


def model(tied: bool) -> Decoder:
    decoder = Decoder(DecoderSpec(**{**corpora.SPEC.model_dump(), "num_layers": 4, "tied": tied})).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return decoder


def two_steps(
    passes: Passes, optimizers: Optimizers, rows: Any, parts: int, data: Peers
) -> tuple[list[StepResult], float]:
    results = []
    for step in range(2):
        ids = np.arange(step * ROWS, (step + 1) * ROWS)
        batches = [rows.rows(part) for part in split(split(ids, data.size)[data.index], parts)]
        results.append(
            train_step(passes, optimizers, CrossEntropy(), batches, step=step, rate=1e-2, clip=CLIP, z_loss=Z)
        )
    return results, validate(passes, rows, 9, 4)[0]


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    rows = corpora.rows(Path(case["rows"]))
    parallel = Parallel(**case["parallel"])
    decoder = model(case["tied"])
    world = World.create(parallel.grid, rank, CPU, GROUPS, parallel.others)
    passes = LaidOutPasses(decoder, parallel, world, rows.row_length)
    optimizers = Optimizers(decoder, TrainConfig(steps=2, optimizer=case["optimizer"]), passes.part)
    results, heldout = two_steps(passes, optimizers, rows, parallel.parts, passes.world.data)
    whole = model(case["tied"])
    found = dict(whole.named_parameters()) if passes.gather(whole) else None
    return [vars(result) for result in results], heldout, found


@some(
    ("parallel", "tied", "optimizer"),
    [
        ({"pp": 2}, True, "adamw"),
        ({"pp": 2, "schedule": "zb1p", "microbatches": 5}, False, "muon"),
        ({"pp": 2, "schedule": "zbv", "microbatches": 7}, True, "muon"),
        ({"pp": 4, "schedule": "gpipe", "microbatches": 3}, True, "muon"),
        ({"pp": 2, "schedule": "interleaved-1f1b", "cut": [1, 2, 3]}, True, "adamw"),
        ({"pp": 2, "vocabulary": 2}, False, "adamw"),
        ({"pp": 2, "vocabulary": 1, "schedule": "zbv", "microbatches": 7}, True, "adamw"),
        ({"pp": 4, "vocabulary": 1, "microbatches": 3}, False, "muon"),
        ({"pp": 2, "vocabulary": 1, "microbatches": 5, "recompute": True}, False, "adamw"),
        ({"pp": 4, "vocabulary": 2, "schedule": "zb1p", "microbatches": 5}, True, "adamw"),
        ({"pp": 2, "schedule": "gpipe", "microbatches": 1}, True, "adamw"),
        ({"pp": 1, "schedule": "gpipe", "microbatches": 3, "recompute": True}, True, "adamw"),
        (
            {"pp": 1, "schedule": "interleaved-1f1b", "chunks": 4, "recompute": True},
            False,
            "adamw",
        ),
        ({"pp": 2, "schedule": "gpipe", "microbatches": 3, "recompute": True}, True, "adamw"),
        ({"pp": 2, "schedule": "zb1p", "microbatches": 5, "recompute": True}, False, "adamw"),
        ({"dp": 2, "microbatches": 2}, True, "muon"),
        ({"tp": 2, "microbatches": 2}, True, "adamw"),
        ({"tp": 2, "microbatches": 1}, False, "adamw"),
        ({"tp": 2, "microbatches": 1, "sequence": False}, True, "adamw"),
        ({"fsdp": 2, "microbatches": 2}, True, "adamw"),
        ({"fsdp": 3, "microbatches": 2, "reshard": False}, False, "adamw"),
        ({"dp": 2, "tp": 2, "microbatches": 2}, True, "adamw"),
        ({"dp": 2, "fsdp": 2, "microbatches": 1}, True, "adamw"),
        ({"fsdp": 2, "tp": 2, "microbatches": 3}, True, "adamw"),
        ({"pp": 2, "tp": 2, "schedule": "zb1p", "microbatches": 3}, True, "adamw"),
        ({"pp": 2, "dp": 2, "schedule": "zbv", "microbatches": 3}, True, "adamw"),
        ({"pp": 2, "fsdp": 2, "microbatches": 3}, True, "adamw"),
        ({"pp": 2, "fsdp": 2, "schedule": "zbv", "microbatches": 3}, False, "adamw"),
        # Held-out loss of nine rows in micro-batches of four: some ranks have none of the last.
        ({"dp": 2, "tp": 2, "microbatches": 2, "layers": [{"of": [1, 2], "fsdp": 4}]}, True, "adamw"),
    ],
    by=layout,
)
def test_two_steps_are_those_of_one_process(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any], tied: bool, optimizer: str
) -> None:
    rows = corpora.rows(tmp_path / "rows")
    whole = model(tied)
    expected, heldout = two_steps(
        OnePass(whole, whole, CPU, "fp32"),
        Optimizers(whole, TrainConfig(steps=2, optimizer=optimizer)),
        rows,
        2,
        Peers.alone(),
    )
    laid = Parallel(**parallel)
    case = {"rows": str(tmp_path / "rows"), "parallel": parallel, "tied": tied, "optimizer": optimizer}
    answers = pool.run(task, laid.grid.size, case, laid.grid, *laid.others)
    for results, loss, _ in answers:  # every rank knows the whole's numbers
        for found, result in zip(results, expected, strict=True):
            assert found["grad_norm"] > CLIP
            for name, value in vars(result).items():
                assert found[name] == pytest.approx(value, rel=1e-6), name
        assert loss == pytest.approx(heldout, rel=1e-6)
    weights = answers[0][2]
    for name, parameter in whole.named_parameters():
        # fp32 in the norm (as torch's) and in Muon (bfloat16 inside) bound what can be asked.
        close = 1e-5 if optimizer == "adamw" else 2e-3
        torch.testing.assert_close(weights[name], parameter, rtol=close, atol=close, check_dtype=True)


@pytest.mark.parametrize(
    "parallel",
    [
        {"pp": 2, "recompute": [0, 3], "offload": [1], "microbatches": 3},
        {"pp": 2, "schedule": "zb1p", "offload": True, "microbatches": 3},
        {"fsdp": 2, "recompute": [0], "offload": [2, 3], "microbatches": 2},
    ],
)
def test_layers_of_their_own_strategies_take_the_steps_of_one_process(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any]
) -> None:
    """As `shunter plan` gives them: kept, computed again and put aside, each by its number."""
    test_two_steps_are_those_of_one_process(pool, tmp_path, parallel, True, "adamw")


def single(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    rows, parallel = corpora.rows(Path(case["rows"])), Parallel(**case["parallel"])
    decoder = model(True).float()
    passes = LaidOutPasses(decoder, parallel, World.create(parallel.grid, rank, CPU, GROUPS), rows.row_length)
    optimizers = Optimizers(decoder, TrainConfig(steps=2, optimizer="adamw"), passes.part)
    results, _ = two_steps(passes, optimizers, rows, parallel.parts, passes.world.data)
    return [vars(result) for result in results]


@pytest.mark.parametrize(
    "parallel", [{"fsdp": 2, "microbatches": 2}, {"pp": 2, "fsdp": 2, "microbatches": 3}]
)
def test_sharded_weights_learn_in_single_precision(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any]
) -> None:
    """torch reduces float32 in another way than float64, which is what most tests are in."""
    rows = corpora.rows(tmp_path / "rows")
    whole = model(True).float()
    optimizers = Optimizers(whole, TrainConfig(steps=2, optimizer="adamw"))
    expected, _ = two_steps(OnePass(whole, whole, CPU, "fp32"), optimizers, rows, 2, Peers.alone())
    grid = Parallel(**parallel).grid
    case = {"rows": str(tmp_path / "rows"), "parallel": parallel}
    for results in pool.run(single, grid.size, case, grid):
        for found, result in zip(results, expected, strict=True):
            assert found["loss"] == pytest.approx(result.loss, rel=1e-5)
            assert found["grad_norm"] == pytest.approx(result.grad_norm, rel=1e-4)


def here(parallel: dict[str, Any], rows: Any, **more: Any) -> LaidOutPasses:
    """In this process alone."""
    laid = Parallel(**parallel)
    return LaidOutPasses(
        model(True), laid, World.create(Grid(), 0, CPU, ProcessGroups()), rows.row_length, **more
    )


def test_actions_take_at_least_what_they_are_told(tmp_path: Path) -> None:
    rows = corpora.rows(tmp_path / "rows")
    batches = [rows.rows(np.arange(2)), rows.rows(np.arange(2, 4))]
    factors = [torch.ones(batch.tokens.shape) for batch in batches]
    plain, slept = ({"microbatches": 2, **more} for more in ({}, {"at_least": {"F": [0.1], "B": [0.15]}}))
    losses, seconds = [], []
    for parallel in (plain, slept):
        passes = here(parallel, rows)
        begin = time.perf_counter()
        losses.append(passes.gradients(batches, factors, 0.0)[0])
        seconds.append(time.perf_counter() - begin)
    assert seconds[1] >= 0.5
    assert losses[0] == losses[1]
    with pytest.raises(ShunterError, match="gives F 2 times, and there are 1 stages"):
        here({"microbatches": 2, "at_least": {"F": [0.1, 0.1]}}, rows)


def test_what_the_host_has_no_room_for_is_not_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, meminfo = corpora.rows(tmp_path / "rows"), tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    for free in (1, 1 << 20):
        meminfo.write_text(f"MemFree: 0 kB\nMemAvailable: {free} kB\n", encoding="ascii")
        if free == 1:
            with pytest.raises(ShunterError, match=r"rank 0 puts up to .* aside, and the host has .* free"):
                here({"offload": True, "microbatches": 1}, rows)
        else:
            here({"offload": True, "microbatches": 1}, rows)


def test_cuts_that_cannot_be_are_refused() -> None:
    decoder = model(True)
    parallel = Parallel(pp=2, cut=[4])
    with pytest.raises(ShunterError, match="does not give every stage a layer of 4"):
        cut_decoder(decoder, parallel, parallel.order(), 24)
    with pytest.raises(ShunterError, match="cut has 2 bounds, but 2 stages have 1"):
        Parallel(pp=2, cut=[1, 2]).order()
    with pytest.raises(ShunterError, match="forward-only trains nothing"):
        Parallel(pp=2, schedule="forward-only").order()
    with pytest.raises(ShunterError, match="Did you mean 1f1b"):
        Parallel(pp=2, schedule="1fb1").order()


def test_objective_counts_do_not_depend_on_the_split(tmp_path: Path) -> None:
    rows = corpora.rows(tmp_path / "rows")
    ids = np.arange(11)
    sizes = [len(part) for part in split(ids, 4)]
    assert sizes == [3, 3, 3, 2]
    whole = total(CrossEntropy(), [rows.rows(ids)])
    assert total(CrossEntropy(), [rows.rows(part) for part in split(ids, 4)]) == whole
