"""Adapters in a pipeline: the losses, gradient norms and merged weights of one process.

Not shown: tensor, sharded and context layouts of adapters (what each rank would hold of them is declared in
`models/adapter.py` and tested there); a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.models.decoder import Decoder
from shunter.parallel.transport import Groups
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach, merged
from shunter.train.config import Parallel, TrainConfig
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.pipeline import PipelinePasses
from shunter.train.world import World
from tests.parallel.pool import Pool
from tests.train import corpora
from tests.train.test_pipeline import CPU, model, two_steps


def adapted(case: dict[str, Any]) -> Decoder:
    decoder = model(case["tied"])
    attach(decoder, AdapterConfig(**{"rank": 4, **case["adapter"]}), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.double().parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return decoder


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    rows = corpora.rows(Path(case["rows"]))
    parallel = Parallel(**case["parallel"])
    decoder, whole = adapted(case), adapted(case)
    passes = PipelinePasses(decoder, parallel, World(groups, rank, CPU), rows.row_length)
    optimizers = Optimizers(decoder, TrainConfig(steps=2, optimizer=case.get("optimizer", "adamw")))
    results, heldout = two_steps(passes, optimizers, rows, parallel.parts)
    gathered = passes.gather(whole)
    weights = dict(merged(whole).named_parameters()) if gathered else {}
    here = [name for name, p in decoder.named_parameters() if p.requires_grad and not p.is_meta]
    return [vars(result) for result in results], heldout, weights, len(here), set(optimizers.state())


CASES: list[dict[str, Any]] = [
    {"parallel": {"pp": 2}, "tied": True, "adapter": {}},
    {"parallel": {"pp": 2, "schedule": "zb1p", "microbatches": 5}, "tied": False,
     "adapter": {"quantise": "nf4", "also": ["norms"]}},
    {"parallel": {"pp": 2, "schedule": "zbv", "microbatches": 7}, "tied": True,
     "adapter": {"targets": ["q", "down"], "also": ["embed"]}},
    {"parallel": {"pp": 2, "schedule": "gpipe", "recompute": True}, "tied": False,
     "adapter": {"targets": ["k", "up"], "quantise": "int8", "also": ["head"]}},
    {"parallel": {"pp": 2, "vocabulary": 2}, "tied": False, "adapter": {}},
    {"parallel": {"pp": 2, "vocabulary": 1}, "tied": True, "adapter": {"also": ["embed"]}},
    {"parallel": {"pp": 2, "vocabulary": 1, "schedule": "zbv", "microbatches": 7}, "tied": False,
     "adapter": {"also": ["head"]}},
    {"parallel": {"pp": 4, "microbatches": 3}, "tied": True, "adapter": {}, "optimizer": "muon"},
    # Stages before the head learn nothing, and wait for no gradient.
    {"parallel": {"pp": 2}, "tied": False, "adapter": {"targets": [], "also": ["head"]}},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['parallel']}-{case['adapter']}")
def test_two_steps_are_those_of_one_process(pool: Pool, tmp_path: Path, case: dict[str, Any]) -> None:
    rows = corpora.rows(tmp_path / "rows")
    whole = adapted(case)
    optimizer = case.get("optimizer", "adamw")
    expected, heldout = two_steps(
        OnePass(whole, whole, CPU, "fp32"),
        Optimizers(whole, TrainConfig(steps=2, optimizer=optimizer)),
        rows,
        2,
    )
    answers = pool.run(task, case["parallel"]["pp"], {**case, "rows": str(tmp_path / "rows")})
    for results, loss, _, trained, states in answers:
        for found, result in zip(results, expected, strict=True):
            for name, value in vars(result).items():
                assert found[name] == pytest.approx(value, rel=1e-6), name
        assert loss == pytest.approx(heldout, rel=1e-6)
        assert len(states) == trained
    close = 1e-5 if optimizer == "adamw" else 2e-3
    for name, parameter in merged(whole).named_parameters():
        torch.testing.assert_close(answers[0][2][name], parameter, rtol=close, atol=close)
