"""`how.compile` changes how a model is computed, not what is learnt: in one process and under layouts.

It may stand in `how` only because of this. It shows one small model on a CPU, with documents of all lengths
in its rows; that a compiler is right on another device or shape it cannot show.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._functorch.config as functorch
from torch._dynamo.utils import counters

from shunter.parallel.mesh import Groups
from shunter.record import events
from shunter.train.loop import Training
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.world import World
from tests.mutants.subjects import case, decoder
from tests.parallel.pool import GROUPS, Pool
from tests.train import corpora, layouts
from tests.train.layouts import Case

pytestmark = [
    pytest.mark.long,  # the compiler alone takes most of a minute
    pytest.mark.skipif(
        shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler"
    ),
]


def trained(folder: Path, precision: str, how: dict[str, Any]) -> Training:
    # AdamW: Muon makes its updates in bfloat16, which would hide a difference in fp32.
    config = {"steps": 8, "precision": precision, "optimizer": "adamw"}
    training = corpora.training(folder, config, {"checkpoint_every": 100, **how})
    training.run()
    return training


def steps(training: Training) -> list[dict[str, Any]]:
    return [e for e in events.read(training.place.log / "ledger.jsonl") if e["event"] == "step"]


@pytest.mark.parametrize(("precision", "tolerance", "apart"), [("fp32", 1e-5, 1e-2), ("bf16", 1e-2, 0.3)])
def test_compiled_it_learns_the_same(precision: str, tolerance: float, apart: float, tmp_path: Path) -> None:
    """The same rows, losses and gradient norms, and weights that moved the same way.

    tolerance: of losses, relative; bfloat16 has eight bits, and what the compiler fuses is rounded less
    often. apart: of weights, as a share of how far they moved (AdamW divides by a gradient that is nearly 0).
    """
    plain = trained(tmp_path / "plain", precision, {})
    torch.compiler.reset()
    counters.clear()
    # In the second case with as little kept as can be.
    how = {"compile": True, "micro_batch": 4, "compile_memory": 1.0 if precision == "fp32" else 0.5}
    compiled = trained(tmp_path / "compiled", precision, how)
    assert functorch.activation_memory_budget == how["compile_memory"]
    assert counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    for a, b in zip(steps(plain), steps(compiled), strict=True):
        assert (a["rows"], a["position"], a["tokens"]) == (b["rows"], b["position"], b["tokens"])
        assert b["loss"] == pytest.approx(a["loss"], rel=tolerance)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=10 * tolerance)
    for (name, a), b, begin in zip(
        plain.decoder.named_parameters(),
        compiled.decoder.parameters(),
        corpora.decoder().parameters(),
        strict=True,
    ):
        moved = float((a - begin).detach().norm())
        assert float((a - b).detach().norm()) <= apart * moved, f"{name} moved {moved}"


def gradients(
    rank: int, groups: Groups, request: tuple[Case, bool]
) -> tuple[dict[str, torch.Tensor] | None, int]:
    """Of a step's rows, under a layout; and how much was compiled."""
    case, compiled = request
    torch.compiler.reset()
    counters.clear()
    world = World.create(case.layout.grid, rank, layouts.CPU, GROUPS)
    passes = LaidOutPasses(layouts.model(case), case.layout, world, case.length, compiled=compiled)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        return split(split(ids, world.data.size)[world.data.index], case.layout.parts)

    layouts.gradients(case, passes, parts)
    found = {name: p.grad for name, p in passes.parameters.items() if p.grad is not None}
    return passes.whole(found), counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "parallel",
    [{"fsdp": 2}, {"tp": 2}, {"cp": 2, "recompute": "full"}, {"pp": 2}, {"fsdp": 2, "tp": 2}],
    ids=str,
)
def test_layers_compiled_under_a_layout_have_the_gradients_of_plain_ones(
    pool: Pool, parallel: dict[str, Any]
) -> None:
    made = case(parallel, decoder(num_layers=2, qk_norm=True), rows=8, length=16, dropout=(0.2, 0.1))
    grid = made.layout.grid
    (expected, none), *_ = pool.run(gradients, grid.size, (made, False), grid)
    (found, graphs), *_ = pool.run(gradients, grid.size, (made, True), grid)
    assert expected is not None
    assert found is not None
    assert none == 0 < graphs
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
