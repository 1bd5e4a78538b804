"""A run goes on under another layout as if nothing had happened: the same tensors, the same losses.

In float64 and one folder that all ranks see. What this cannot show: a file system that is slow to agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups
from shunter.recipe.job import Stopped
from shunter.record import events
from shunter.train.config import Parallel
from shunter.train.loop import Training
from shunter.train.world import World
from tests.jobs.conftest import Still
from tests.parallel.pool import GROUPS, Pool
from tests.train import corpora

CPU = torch.device("cpu")
EACH = 2  # steps under each layout
TENSOR: list[dict[str, Any]] = [{"tp": 2}, {}, {"tp": 4}, {"tp": 2}]
TITAN: list[dict[str, Any]] = [
    {"fsdp": 2, "tp": 2},
    {"dp": 2, "tp": 2, "zero": 1, "layers": [{"of": [1], "fsdp": 4}]},
    {"fsdp": 4, "ends": {"tp": 4}},
    {"pp": 2, "fsdp": 2},
    {"cp": 2, "fsdp": 2},
    {},
]
FOLDED: list[dict[str, Any]] = [
    {"tp": 2, "cp": 2, "ep": 4},
    {"dp": 2, "tp": 2, "ep": 2, "etp": 2},
    {"dp": 2, "cp": 2, "ep": 2, "zero": 1},
    {},
    {"pp": 2, "fsdp": 2, "ep": 2},
]


@dataclass(frozen=True)
class Leg:
    """Some steps under one layout. folder: of the whole run. steps: of it. stop: after how many more."""

    folder: Path
    parallel: dict[str, Any]
    experts: bool
    steps: int
    stop: int | None


def model(experts: bool) -> Decoder:
    changes: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    if experts:
        changes |= {"tied": False, "qk_norm": True}
        changes["experts"] = {"num_experts": 4, "per_token": 2, "ffn_dim": 16}
    decoder = Decoder(DecoderSpec(**{**corpora.SPEC.model_dump(), **changes})).double()
    init_weights(decoder, 0)
    return decoder


def walk(leg: Leg, rank: int, world: World | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was loaded and what there is at the end: on rank 0, weights and optimizer by name."""
    place = leg.folder / str(rank)
    place.mkdir(exist_ok=True)
    if not (place / "work").exists():
        (place / "work").symlink_to(leg.folder / "work")
    how = {"parallel": leg.parallel} if world is not None else {}
    training = corpora.training(
        place,
        {"steps": leg.steps, "batch_rows": 8, "optimizer": "adamw"},
        how,
        model=model(leg.experts),
        rows=corpora.rows(leg.folder / "rows"),
        control=Still(stop_after=leg.stop),
        world=world,
    )
    before = {}
    if (latest := training.checkpointer.latest()) is not None:
        training.session.load(training.checkpointer, latest)
        before = tensors(training)
    try:
        training.run()
    except Stopped:
        assert leg.stop is not None
    return before, tensors(training)


def tensors(training: Training) -> dict[str, Tensor]:
    """Copies, put together on rank 0; nothing on the others."""
    state = training.session.state()
    found: dict[str, Tensor] = {}
    for part in ("exp_avg", "exp_avg_sq", ""):
        mine = {name: each[part] for name, each in state["optimizer"].items()} if part else state["model"]
        if training.layout is not None:
            held = training.layout.part.kept if part else None
            mine = training.layout.whole(mine, held) or {}
        found |= {f"{part} {name}": tensor.detach().clone() for name, tensor in mine.items()}
    return found


def task(rank: int, groups: Groups, leg: Leg) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parallel = Parallel(**leg.parallel)
    world = World.create(parallel.grid, rank, CPU, GROUPS, parallel.others)
    return walk(leg, rank, world)


@pytest.mark.parametrize(
    ("layouts", "experts"), [(TENSOR, False), (TITAN, False), (FOLDED, True)], ids=["tp", "axes", "folded"]
)
def test_a_checkpoint_is_lossless_under_other_layouts(
    layouts: list[dict[str, Any]], experts: bool, pool: Pool, tmp_path: Path
) -> None:
    steps = EACH * len(layouts)
    for name in ("alone", "together"):
        (tmp_path / name / "work").mkdir(parents=True)
        corpora.rows(tmp_path / name / "rows")
    _, expected = walk(Leg(tmp_path / "alone", {}, experts, steps, None), 0, None)
    last: dict[str, Tensor] = {}
    for number, parallel in enumerate(layouts):
        done = number == len(layouts) - 1
        leg = Leg(tmp_path / "together", parallel, experts, steps, None if done else EACH)
        if parallel:
            laid = Parallel(**parallel)
            before, after = pool.run(task, laid.grid.size, leg, laid.grid, *laid.others)[0]
        else:
            before, after = walk(leg, 0, None)
        assert before.keys() == last.keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in last.items())
        last = after
    for name, tensor in expected.items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-7, atol=1e-12, msg=name)
    ledgers = [
        list(events.read(tmp_path / name / "0" / "log" / "ledger.jsonl")) for name in ("alone", "together")
    ]
    alone, together = ([e for e in each if e["event"] == "step"] for each in ledgers)
    assert [e["step"] for e in together] == list(range(steps))
    for a, b in zip(alone, together, strict=True):
        assert (a["position"], a["rows"]) == (b["position"], b["rows"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-6)
