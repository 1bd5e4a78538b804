"""What tensor ranks send in a step, against the formulas of arXiv 1909.08053, and what each of them keeps.

Counted by the cheapest usual algorithm of each collective; what a backend puts on the wire is not seen.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.sharding import shapes
from shunter.models.spec import DecoderSpec
from shunter.parallel.counted import counted
from shunter.parallel.mesh import Groups
from shunter.train.config import Parallel, TrainConfig
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.pipeline import LaidOutPasses
from shunter.train.recording import Recording
from shunter.train.step import count, train_step
from shunter.train.traffic import kept_bytes
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool
from tests.train import corpora

CPU = torch.device("cpu")
ROWS = 3


def spec(layers: int) -> DecoderSpec:
    changes = {"num_layers": layers, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8}
    return DecoderSpec(**{**corpora.SPEC.model_dump(), **changes})


def model(layers: int) -> Decoder:
    decoder = Decoder(spec(layers)).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return decoder


def task(rank: int, groups: Groups, case: dict[str, Any]) -> dict[str, Any]:
    rows = corpora.rows(Path(case["rows"]))
    parallel = Parallel(**case["parallel"], microbatches=1)
    decoder = model(case["layers"])
    passes = LaidOutPasses(decoder, parallel, World.create(parallel.grid, rank, CPU, GROUPS), rows.row_length)
    optimizers = Optimizers(decoder, TrainConfig(steps=2, optimizer="adamw"), passes.part)
    kept = kept_bytes(passes.part, optimizers)
    batches = [rows.rows(np.arange(ROWS))]
    counts, _ = count(passes, CrossEntropy(), batches)
    factors = [torch.from_numpy(CrossEntropy().coefficients(each, counts)) for each in batches]
    with counted() as forward:
        passes.loss(batches, factors)
    recording = Recording(passes)
    result = train_step(passes, optimizers, CrossEntropy(), batches, step=0, rate=1e-2, clip=1.0)
    recorded = recording.end()
    (stage,) = passes.part.modules.values()
    assert stage.others is not None
    assert stage.head is not None
    return {
        "forward": forward.calls["all-reduce", (0, 1)],
        "traffic": recorded.traffic,
        "kept": kept,
        "loss": result.loss,
        "tokens": int((factors[0] != 0).sum()),
        "rows": {stage.others.begin: len(stage.head.weight)},
    }


@pytest.fixture(scope="module")
def found(
    pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, bool], list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("rows")
    corpora.rows(place)
    return {
        (layers, sequence): pool.run(
            task,
            2,
            {"rows": str(place), "layers": layers, "parallel": {"tp": 2, "sequence": sequence}},
            Grid(tp=2),
        )
        for layers in (2, 4)
        for sequence in (False, True)
    }


def test_a_layer_and_a_head_send_what_the_paper_says(
    found: dict[tuple[int, bool], list[dict[str, Any]]], tmp_path: Path
) -> None:
    dim, length = corpora.SPEC.dim, corpora.rows(tmp_path).row_length
    for rank in (0, 1):
        few, many = found[2, False][rank], found[4, False][rank]
        assert many["forward"] - few["forward"] == 2 * 2
        calls, size = (
            many["traffic"]["sent"]["all-reduce"][at] - few["traffic"]["sent"]["all-reduce"][at]
            for at in (0, 1)
        )
        assert calls == 2 * (2 + 2)
        assert size == calls * ROWS * length * dim * 8
        assert set(many["traffic"]["sent"]) == {"all-reduce"}
        # Instead: gathers and reduce-scatters of the same bytes, and only the norms' gradients added up.
        few, many = found[2, True][rank]["traffic"]["sent"], found[4, True][rank]["traffic"]["sent"]
        for kind in ("all-gather", "reduce-scatter"):
            assert many[kind][0] - few[kind][0] == 2 * 4
            assert many[kind][1] - few[kind][1] == 2 * 4 * ROWS * length * dim * 8 // 2
        assert many["all-reduce"][0] == few["all-reduce"][0]
        assert many["all-reduce"][1] - few["all-reduce"][1] == 2 * 2 * dim * 8
        for answers in found.values():
            head, tokens = answers[rank]["traffic"]["head"], answers[rank]["tokens"]
            assert head["all-reduce"][0] == 2
            # A largest logit, a sum of exponentials and a target's logit for each token with a weight,
            # and for up to 127 that fill up.
            assert 3 * tokens * 8 <= head["all-reduce"][1] <= 3 * ROWS * length * 8


def test_weights_and_optimizer_are_halved_but_for_the_norms(
    found: dict[tuple[int, bool], list[dict[str, Any]]],
) -> None:
    """The vocabulary of 61 is cut 31 to 30, not padded."""
    for (layers, _), answers in found.items():
        assert [answer["rows"] for answer in answers] == [{0: 31}, {31: 30}]
        sizes = {name: prod(shape) for name, shape in shapes(spec(layers))}
        small = sum(size for name, size in sizes.items() if "norm" in name)
        cut = sum(sizes.values()) - small
        for rank, answer in enumerate(answers):
            odd = (0.5 - rank) * corpora.SPEC.dim
            assert answer["kept"]["weights"] == 8 * (small + cut / 2 + odd)
            steps = answer["kept"]["optimizer"] - 2 * answer["kept"]["weights"]
            assert 0 < steps <= 4 * len(sizes)


def test_an_odd_vocabulary_has_the_loss_of_one_process(
    found: dict[tuple[int, bool], list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = corpora.rows(tmp_path)
    for (layers, _), answers in found.items():
        whole = model(layers)
        optimizers = Optimizers(whole, TrainConfig(steps=2, optimizer="adamw"))
        passes = OnePass(whole, whole, CPU, "fp32")
        batches = [rows.rows(np.arange(ROWS))]
        expected = train_step(passes, optimizers, CrossEntropy(), batches, step=0, rate=1e-2, clip=1.0)
        assert [answer["loss"] for answer in answers] == pytest.approx([expected.loss] * 2, rel=1e-12)
