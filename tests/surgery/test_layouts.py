"""Adapters under any layout: loss, each gradient, its norm, and the weights of one process.

In float64. Packed weights are packed whole and then cut, so each layout reads the same ones. Not shown:
float32 and bfloat16 products, NCCL, a GPU. Vocabulary passes stand below by example.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.parallel.mesh import Groups, Peers
from shunter.surgery.config import ALL
from shunter.surgery.lora import merged
from shunter.train.config import Parallel, TrainConfig
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.draws import layout, some
from tests.parallel.pool import GROUPS, Pool
from tests.surgery.tuning import Tuned, alone, attached, drawn_task
from tests.train import corpora
from tests.train.layouts import cases, differs
from tests.train.test_pipeline import CPU, model, two_steps


@st.composite
def tuned(draw: st.DrawFn) -> Tuned:
    case = draw(cases())
    if case.spec["experts"] is not None:  # biases that are moved are refused
        experts = {**case.spec["experts"], "bias_update": 0.0}
        case = replace(case, spec={**case.spec, "experts": experts})
    if case.parallel["recompute"] == "selective":  # refused
        case = replace(case, parallel={**case.parallel, "recompute": "full"})
    besides = ["norms", "embed", *(["head"] if not case.spec["tied"] else [])]
    adapter = {
        "rank": draw(st.integers(1, 2)),
        "targets": draw(st.lists(st.sampled_from(ALL), min_size=1, unique=True)),
        "also": draw(st.lists(st.sampled_from(besides), unique=True)),
        "quantise": draw(st.sampled_from(["none", "bf16", "int8", "nf4"])),
    }
    return Tuned(case, adapter)


@settings(max_examples=3)
@given(each=tuned())
def test_any_layout_learns_what_one_process_learns(pool: Pool, each: Tuned) -> None:
    check(pool, each)


@pytest.mark.long
@settings(max_examples=100)
@given(each=tuned())
def test_a_hundred_layouts(pool: Pool, each: Tuned) -> None:
    check(pool, each)


def check(pool: Pool, each: Tuned) -> None:
    grid = each.case.layout.grid
    expected = alone(each)
    answers = pool.run(drawn_task, grid.size, each, grid)
    wrong = {rank: found for rank, other in enumerate(answers) if (found := differs(other, expected))}
    assert not wrong


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    rows = corpora.rows(Path(case["rows"]))
    parallel = Parallel(**case["parallel"])
    decoder, whole = (attached(model(case["tied"]), case["adapter"]) for _ in range(2))
    passes = LaidOutPasses(decoder, parallel, World.create(parallel.grid, rank, CPU, GROUPS), rows.row_length)
    train = TrainConfig(steps=2, optimizer=case.get("optimizer", "adamw"))
    optimizers = Optimizers(decoder, train, passes.part)
    results, heldout = two_steps(passes, optimizers, rows, parallel.parts, passes.world.data)
    weights = dict(merged(whole).named_parameters()) if passes.gather(whole) else {}
    here = [name for name, p in passes.parameters.items() if p.requires_grad]
    return [vars(result) for result in results], heldout, weights, len(here), set(optimizers.state())


CASES: list[dict[str, Any]] = [
    {"parallel": {"pp": 2, "schedule": "zb1p", "microbatches": 5}, "tied": False,
     "adapter": {"rank": 4, "quantise": "nf4", "also": ["norms"]}},
    {"parallel": {"pp": 2, "schedule": "gpipe", "recompute": True}, "tied": False,
     "adapter": {"rank": 4, "targets": ["k", "up"], "quantise": "int8", "also": ["head"]}},
    {"parallel": {"pp": 2, "vocabulary": 2}, "tied": False, "adapter": {"rank": 4}},
    {"parallel": {"pp": 2, "vocabulary": 1}, "tied": True, "adapter": {"rank": 4, "also": ["embed"]}},
    {"parallel": {"pp": 2, "vocabulary": 1, "schedule": "zbv", "microbatches": 7}, "tied": False,
     "adapter": {"rank": 4, "also": ["head"]}},
    {"parallel": {"pp": 4, "microbatches": 3}, "tied": True, "adapter": {"rank": 4}, "optimizer": "muon"},
    {"parallel": {"fsdp": 2, "microbatches": 2}, "tied": True, "adapter": {"rank": 4, "quantise": "nf4"}},
    # Stages before the head learn nothing, and wait for no gradient.
    {"parallel": {"pp": 2}, "tied": False, "adapter": {"targets": [], "also": ["head"]}},
]  # fmt: skip


@some("case", CASES, by=layout, ids=lambda case: f"{case['parallel']}-{case['adapter']}")
def test_two_steps_are_those_of_one_process(pool: Pool, tmp_path: Path, case: dict[str, Any]) -> None:
    rows = corpora.rows(tmp_path / "rows")
    whole = attached(model(case["tied"]), case["adapter"])
    optimizer = case.get("optimizer", "adamw")
    expected, heldout = two_steps(
        OnePass(whole, whole, CPU, "fp32"),
        Optimizers(whole, TrainConfig(steps=2, optimizer=optimizer)),
        rows,
        2,
        Peers.alone(),
    )
    grid = Parallel(**case["parallel"]).grid
    answers = pool.run(task, grid.size, {**case, "rows": str(tmp_path / "rows")}, grid)
    for results, loss, _, trained, states in answers:
        for found, result in zip(results, expected, strict=True):
            for name, value in vars(result).items():
                assert found[name] == pytest.approx(value, rel=1e-6), name
        assert loss == pytest.approx(heldout, rel=1e-6)
        assert len(states) == trained
    close = 1e-5 if optimizer == "adamw" else 2e-3
    for name, parameter in merged(whole).named_parameters():
        torch.testing.assert_close(answers[0][2][name], parameter, rtol=close, atol=close)
