"""Training with experts: it learns, is resumed bit by bit, and no result depends on how a step is cut.

What this cannot show: that a model with experts is the better one for its cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.moe import expert_load, routers
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups
from shunter.parallel.part import DecoderPart
from shunter.record import events, points
from shunter.train.config import Parallel, TrainConfig
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.step import train_step
from shunter.train.validation import validate
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool
from tests.train import corpora

CPU = torch.device("cpu")
SOFTMAX = {"num_experts": 4, "per_token": 2, "ffn_dim": 24, "balance_loss": 0.01, "z_loss": 1e-3}
SIGMOID = {**SOFTMAX, "router": "sigmoid", "shared_ffn_dim": 24, "bias_update": 1e-3, "dense_first": 1}


def decoder(experts: dict[str, Any], seed: int = 0, layers: int = 2) -> Decoder:
    shape = {**corpora.SPEC.model_dump(), "experts": experts, "num_layers": layers}
    model = Decoder(DecoderSpec(**shape))
    init_weights(model, seed)
    return model


def wide(experts: dict[str, Any], layers: int = 2) -> Decoder:
    """In float64, with weights that are not zero where the initialisation has zeros."""
    model = decoder(experts, layers=layers).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model


def state(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("experts", [{**SOFTMAX, "capacity": 1.25}, SIGMOID], ids=["softmax", "sigmoid"])
def test_it_learns_and_is_resumed_bit_by_bit(experts: dict[str, Any], optimizer: str, tmp_path: Path) -> None:
    config = {"optimizer": optimizer, "lr": 1e-2}
    whole = corpora.training(tmp_path / "whole", config, model=decoder(experts))
    whole.run()
    logged = [e for e in events.read(whole.place.log / "ledger.jsonl") if e["event"] == "step"]
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.3
    lines = [e for e in events.read(whole.place.log / "events.jsonl") if "experts/load_max" in str(e)]
    assert len(lines) == 6

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == 7:
            raise KeyboardInterrupt

    points.install(kill)
    try:
        with pytest.raises(KeyboardInterrupt):
            corpora.training(tmp_path / "killed", config, model=decoder(experts)).run()
    finally:
        points.install(None)
    again = corpora.training(tmp_path / "killed", config, model=decoder(experts, seed=5))
    again.run()
    expected = state(whole.decoder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(again.decoder).items())
    if optimizer == "adamw" and experts is SIGMOID:
        assert bool(expected["layers.1.ffn.router.bias"].any()), "the equality says nothing about the bias"


def one_step(model: Decoder, rows: Any, cuts: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    batches = [rows.rows(part) for part in split(np.arange(7), cuts)]
    passes, optimizers = OnePass(model, model, CPU, "fp32"), Optimizers(model, TrainConfig(steps=1))
    train_step(passes, optimizers, CrossEntropy(), batches, step=0, rate=1e-2, clip=0.1)
    return state(model), expert_load(model)


@pytest.mark.parametrize("experts", [{**SOFTMAX, "capacity": 0.9}, SIGMOID], ids=["softmax", "sigmoid"])
def test_a_step_does_not_depend_on_micro_batches(experts: dict[str, Any], tmp_path: Path) -> None:
    rows = corpora.rows(tmp_path)
    whole, load = one_step(wide(experts), rows, 1)
    for cuts in (2, 7):
        parts, other = one_step(wide(experts), rows, cuts)
        for name, tensor in parts.items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-9, atol=1e-12, msg=name)
        assert other == pytest.approx(load, rel=1e-9)


def test_modes_that_depend_on_the_micro_batch_do(tmp_path: Path) -> None:
    """They are labelled so in their fields."""
    rows = corpora.rows(tmp_path)
    for mode in ({"capacity": 0.9, "capacity_scope": "local"}, {"balance_scope": "microbatch"}):
        experts = {**SOFTMAX, "balance_loss": 1.0, **mode}
        (whole, _), (parts, _) = (one_step(wide(experts), rows, cuts) for cuts in (1, 7))
        gap = max(float((parts[name] - whole[name]).abs().max()) for name in whole)
        assert gap > 1e-5, mode


def test_held_out_rows_are_scored_without_dropping(tmp_path: Path) -> None:
    rows = corpora.rows(tmp_path)
    training = corpora.training(
        tmp_path / "run",
        {"steps": 1, "lr": 1e-9, "warmup": 0},
        model=decoder({**SOFTMAX, "capacity": 0.2}),
        rows=rows,
    )
    training.heldout = rows
    with torch.no_grad():
        for parameter in training.decoder.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    found = training.run()["heldout_loss"]
    free = decoder(SOFTMAX)
    free.load_state_dict(training.decoder.state_dict())
    expected = validate(OnePass(free, free, CPU, "fp32"), rows, rows.num_rows, 16)[0]
    assert found == pytest.approx(expected, rel=1e-6)
    assert training.decoder.training


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    rows, parallel = corpora.rows(Path(case["rows"])), Parallel(**case["parallel"])
    model = wide(case["experts"], layers=4)
    passes = LaidOutPasses(model, parallel, World.create(parallel.grid, rank, CPU, GROUPS), rows.row_length)
    steps(model, passes, rows, parallel.parts, passes.part)
    whole = decoder(case["experts"], layers=4).double()
    return whole.state_dict() if passes.gather(whole) else None


def steps(model: Decoder, passes: Any, rows: Any, parts: int, part: DecoderPart | None = None) -> None:
    optimizers = Optimizers(model, TrainConfig(steps=2), part)
    for step in range(2):
        batches = [rows.rows(part) for part in split(np.arange(7 * step, 7 * step + 7), parts)]
        train_step(passes, optimizers, CrossEntropy(), batches, step=step, rate=1e-2, clip=0.1)


@pytest.mark.parametrize(
    "parallel",
    [
        {"pp": 2},
        {"pp": 2, "schedule": "zbv", "microbatches": 5},
        {"pp": 4, "microbatches": 3, "recompute": True},
    ],
    ids=str,
)
def test_a_pipeline_trains_what_one_process_trains(
    parallel: dict[str, Any], tmp_path: Path, pool: Pool
) -> None:
    rows = corpora.rows(tmp_path)
    case = {"parallel": parallel, "experts": SIGMOID, "rows": str(tmp_path)}
    grid = Parallel(**parallel).grid
    found = pool.run(task, grid.size, case, grid)[0]
    model = wide(SIGMOID, layers=4)
    steps(model, OnePass(model, model, CPU, "fp32"), rows, 1)
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)
    assert any(bool(router.bias.any()) for _, router in routers(model) if router.bias is not None)
