"""Measured costs of a decoder's parts: what is heavier takes longer, and nothing else is disturbed.

What these tests cannot show: how near the figures are to those of a training with other work beside it.
"""

from __future__ import annotations

import pytest
import torch

from shunter.models.spec import DecoderSpec
from shunter.parallel.cut import cut_layers
from shunter.parallel.measure import measure_parts, measured_costs
from shunter.schedule.order import looped

CPU = torch.device("cpu")


def spec(vocabulary: int, *, tied: bool = False) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocabulary, dim=64, num_layers=8, num_heads=2, num_kv_heads=1, head_dim=32, ffn_dim=128,
        max_positions=64, tied=tied,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_a_heavy_head_takes_layers_off_the_last_stage(precision: str) -> None:
    costs, first, last = measured_costs(spec(32768), 64, 4, CPU, precision)
    assert len(costs) == 8
    assert len(set(costs)) == 1
    assert min(costs[0], first) > 0
    assert last > 2 * costs[0], "a head of 32,768 rows has some fifty times the work of a layer"
    cut = cut_layers(costs, looped(2, 1), first, last)
    assert cut[1] > 4


def test_more_rows_take_longer() -> None:
    few, many = (measure_parts(spec(256, tied=True), 64, rows, CPU, budget=0.1) for rows in (1, 32))
    for name in ("layer", "head"):
        assert getattr(many, name).both > 2 * getattr(few, name).both
    assert many.layer.forward > 0
    assert many.layer.backward > 0


def test_random_numbers_of_others_stay_as_they_are() -> None:
    before = torch.random.get_rng_state()
    measure_parts(spec(64), 8, 1, CPU, budget=0.0)
    assert torch.equal(torch.random.get_rng_state(), before)
