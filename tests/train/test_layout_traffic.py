"""What a layout is said to send and to hold is what ranks send and hold, for rows of one document.

What this cannot show: what a backend does inside a collective, and figures under uneven load of experts,
which are an expectation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.counted import counted
from shunter.parallel.mesh import Groups
from shunter.train.config import Parallel, TrainConfig
from shunter.train.layout_describe import describe
from shunter.train.layout_parts import Plan
from shunter.train.layout_traffic import step_traffic
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.step import train_step
from shunter.train.world import World
from tests.draws import layout, some
from tests.parallel.pool import GROUPS, Pool

CPU = torch.device("cpu")
LENGTH, ROWS = 16, 8
SPEC: dict[str, Any] = {
    "dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "ffn_dim": 12,
    "vocab_size": 33, "max_positions": LENGTH,
}  # fmt: skip
# Each token passes through every expert, so that load is even.
EXPERTS = {"num_experts": 4, "per_token": 4, "ffn_dim": 6}
# As many rows as a capacity allows, whatever is chosen.
FILLED = {**EXPERTS, "per_token": 1, "capacity": 1.5}
SHARED = {**EXPERTS, "router": "sigmoid", "shared_ffn_dim": 6}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tp": 2, "sequence": False, "microbatches": 2}, {}),
    ({"tp": 2, "microbatches": 2}, {"qk_norm": True}),
    ({"tp": 4, "microbatches": 1}, {}),  # more ranks than heads of keys and values
    ({"dp": 3, "microbatches": 2}, {}),
    ({"fsdp": 2, "microbatches": 2}, {}),
    ({"fsdp": 3, "microbatches": 1, "reshard": False}, {"tied": True}),
    ({"fsdp": 2, "tp": 2, "microbatches": 2}, {"tied": True}),
    ({"cp": 2, "microbatches": 2}, {}),
    ({"cp": 2, "dp": 2, "microbatches": 2, "attention": "gather"}, {}),
    ({"cp": 4, "microbatches": 1, "attention": "ulysses"}, {}),
    ({"fsdp": 2, "cp": 2, "microbatches": 1}, {}),
    ({"dp": 2, "ep": 2, "microbatches": 2}, {"experts": EXPERTS}),
    ({"fsdp": 2, "tp": 2, "ep": 2, "etp": 2, "microbatches": 1}, {"experts": EXPERTS}),
    ({"fsdp": 4, "ep": 2, "microbatches": 2}, {"experts": EXPERTS}),
    ({"pp": 2, "microbatches": 2, "tp": 2}, {"tied": True}),
    ({"pp": 2, "fsdp": 2, "microbatches": 2, "schedule": "zbv"}, {"num_layers": 4}),
    ({"pp": 2, "microbatches": 2, "recompute": True, "cp": 2}, {}),
    ({"cp": 2, "tp": 2, "microbatches": 2, "recompute": "full"}, {}),
    ({"tp": 2, "sequence": False, "microbatches": 1, "recompute": [1]}, {}),
    ({"fsdp": 4, "ep": 2, "microbatches": 2, "recompute": "full"}, {"experts": EXPERTS}),
    ({"tp": 2, "ep": 2, "microbatches": 1, "recompute": "selective"}, {"experts": SHARED, "qk_norm": True}),
    ({"dp": 3, "microbatches": 2, "zero": 1}, {"qkv_bias": True}),
    ({"dp": 2, "tp": 2, "microbatches": 2, "zero": 1}, {"tied": True, "num_kv_heads": 1}),
    ({"dp": 2, "fsdp": 2, "microbatches": 1, "zero": 1}, {}),
    ({"pp": 2, "cp": 2, "microbatches": 2, "zero": 1}, {"tied": True}),
    ({"dp": 2, "tp": 2, "ep": 2, "microbatches": 1, "zero": 1}, {"experts": EXPERTS}),
    (
        {
            "chunks": 2,
            "schedule": "interleaved-1f1b",
            "fsdp": 2,
            "microbatches": 2,
            "recompute": True,
        },
        {},
    ),
    ({"tp": 2, "microbatches": 2, "layers": [{"of": [0], "fsdp": 2}]}, {}),
    (
        {
            "fsdp": 2,
            "tp": 2,
            "microbatches": 2,
            "zero": 1,
            "layers": [{"of": [0], "dp": 2, "cp": 2}, {"of": [1], "tp": 4}],
        },
        {},
    ),
    ({"fsdp": 2, "microbatches": 2, "ends": {"tp": 2}}, {}),
    ({"tp": 2, "dp": 2, "microbatches": 2, "zero": 1, "ends": {"fsdp": 2, "dp": 2}}, {"tied": True}),
    ({"pp": 2, "tp": 2, "microbatches": 2, "ends": {"dp": 2}, "layers": [{"of": [0], "cp": 2}]}, {}),
    ({"dp": 2, "ep": 2, "microbatches": 2, "pad_experts": True}, {"experts": FILLED}),
    ({"fsdp": 2, "tp": 2, "ep": 2, "etp": 2, "microbatches": 1, "pad_experts": True}, {"experts": FILLED}),
]


def whole_rows(count: int) -> Batch:
    """Of one document each, every target counted."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, SPEC["vocab_size"], (count, LENGTH))
    positions = np.tile(np.arange(LENGTH), (count, 1))
    segments = np.zeros((count, LENGTH), dtype=np.int32)
    return Batch(tokens, tokens[:, ::-1].copy(), segments, positions, np.arange(count))


def measure(
    rank: int, groups: Groups, case: tuple[dict[str, Any], dict[str, Any], str, str]
) -> tuple[int, dict[str, int], tuple[int, int]]:
    """Bytes of the second step (the first tells shapes), calls by kind, elements of weights and of state."""
    written, changed, optimizer, precision = case
    parallel = Parallel(**written)
    world = World.create(parallel.grid, rank, CPU, GROUPS, parallel.others)
    torch.manual_seed(0)
    passes = LaidOutPasses(
        Decoder(DecoderSpec(**{**SPEC, **changed})), parallel, world, LENGTH, optimizer=optimizer
    )
    passes.precision = precision
    config = TrainConfig(steps=2, optimizer=optimizer)  # type: ignore[arg-type]
    optimizers = Optimizers(passes.decoder, config, passes.part)
    batches = [whole_rows(ROWS // parallel.data // parallel.parts) for _ in range(parallel.parts)]
    for step in range(2):
        with counted() as sent:
            train_step(passes, optimizers, CrossEntropy(), batches, step=step, rate=1e-3, clip=1.0)
    calls: dict[str, int] = {}
    for (kind, _), count in sent.calls.items():
        calls[kind] = calls.get(kind, 0) + count
    weights = sum(parameter.numel() for parameter in passes.part.weights.values())
    state = sum(t.numel() for each in optimizers.state().values() for n, t in each.items() if n != "step")
    if optimizers.cut_muon is not None:
        state += sum(m.update.numel() for m in optimizers.cut_muon.matrices.values() if m.update is not None)
    return sent.total(), calls, (weights, state)


def planned(case: tuple[dict[str, Any], dict[str, Any], str, str]) -> Plan:
    written, changed, _, precision = case
    parallel = Parallel(**written)
    rows = ROWS // parallel.data // parallel.parts * parallel.data * parallel.parts
    spec = DecoderSpec(**{**SPEC, **changed})
    return Plan.make(spec, parallel, LENGTH, rows, bf16=precision == "bf16")


def compare(pool: Pool, case: tuple[dict[str, Any], dict[str, Any], str, str]) -> None:
    plan = planned(case)
    answers = pool.run(measure, plan.grid.size, case, plan.grid, *plan.parallel.others)
    told = describe(plan, case[2], {})
    assert [sum(sent.values()) for sent in told.traffic] == [total for total, _, _ in answers], told.traffic
    held = [(each.parameters, each.optimizer // plan.wide) for each in told.ranks]
    assert held == [elements for _, _, elements in answers]


def test_stages_send_a_tensor_ranks_own_tokens_alone() -> None:
    """Scatter and gather of arXiv 2104.04473, section 4.1. That ranks send what is counted stands below."""
    sent = []
    for sequence in (True, False):
        laid = {"pp": 2, "tp": 2, "microbatches": 2, "sequence": sequence}
        plan = planned((laid, {"tied": False}, "adamw", "fp32"))
        sent.append(step_traffic(plan, 0)["pipeline"])
    assert sent[1] == 2 * sent[0]


@some(("parallel", "changed"), CASES, by=layout)
def test_bytes_sent_and_elements_held_are_those_counted(
    pool: Pool, parallel: dict[str, Any], changed: dict[str, Any]
) -> None:
    compare(pool, (parallel, changed, "adamw", "fp32"))


@pytest.mark.parametrize(
    "parallel",
    [
        {"tp": 2, "fsdp": 2, "microbatches": 2},
        {"fsdp": 3, "microbatches": 1},
        {"dp": 3, "microbatches": 1, "zero": 1},
        {"dp": 2, "tp": 2, "microbatches": 2, "zero": 1},
    ],
)
def test_muon_s_messages(pool: Pool, parallel: dict[str, Any]) -> None:
    compare(pool, (parallel, {}, "muon", "fp32"))


@pytest.mark.parametrize(("parallel", "changed"), [CASES[1], CASES[0], CASES[8], CASES[11], CASES[14]])
def test_bytes_in_bfloat16(pool: Pool, parallel: dict[str, Any], changed: dict[str, Any]) -> None:
    compare(pool, (parallel, changed, "adamw", "bf16"))


def test_gathering_in_bfloat16(pool: Pool) -> None:
    compare(pool, ({"fsdp": 2, "gather": "bf16", "microbatches": 2}, {"qk_norm": True}, "adamw", "bf16"))
    written = {"fsdp": 4, "ep": 2, "gather": "bf16", "microbatches": 1}
    compare(pool, (written, {"experts": EXPERTS}, "adamw", "bf16"))


def test_two_all_reduces_forward_and_two_backward_a_layer(pool: Pool) -> None:
    """arXiv 1909.08053, section 3: one more layer, four more all-reduces, and no other call."""
    found = []
    for layers in (2, 3):
        parallel: dict[str, Any] = {"tp": 2, "sequence": False, "microbatches": 1}
        answers = pool.run(
            measure, 2, (parallel, {"num_layers": layers}, "adamw", "fp32"), Parallel(**parallel).grid
        )
        found.append(answers[0][1])
    assert found[1]["all-reduce"] - found[0]["all-reduce"] == 4
    assert found[0].keys() == found[1].keys() == {"all-reduce"}
