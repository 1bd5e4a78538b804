"""Documents in a row do not see each other: equal to each document alone, forward and backward."""

from __future__ import annotations

from itertools import groupby

import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.runs import beginnings
from shunter.models.segments import MASK_UP_TO, SegmentPlan
from shunter.models.spec import DecoderSpec, ExpertsSpec

SPEC = DecoderSpec(
    vocab_size=31, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=24, tied=True
)


def a_model(window: int | None = None) -> Decoder:
    model = Decoder(SPEC.model_copy(update={"sliding_window": window})).double()
    init_weights(model, 3)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3, generator=draw)
    return model


@given(
    st.lists(st.lists(st.integers(1, 24), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 5),
    st.sampled_from([None, 1, 7]),
    st.sampled_from([0, MASK_UP_TO]),
)
def test_packed_equals_apart(
    rows: list[list[int]], padding: int, window: int | None, mask_up_to: int
) -> None:
    model = a_model(window)
    length = max(sum(row) for row in rows) + padding
    draw = torch.Generator().manual_seed(sum(map(sum, rows)))
    tokens = torch.randint(0, 31, (len(rows), length), generator=draw)
    segments = torch.full((len(rows), length), -1)
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    apart, weights = [], torch.zeros(len(rows), length, 16, dtype=torch.float64)
    for r, row in enumerate(rows):
        begin = 0
        for s, n in enumerate(row):
            segments[r, begin : begin + n] = s
            positions[r, begin : begin + n] = torch.arange(n)
            weights[r, begin : begin + n] = torch.randn(n, 16, generator=draw, dtype=torch.float64)
            apart.append((r, begin, n))
            begin += n
    plan = SegmentPlan.build(segments, mask_up_to)
    (model(tokens, positions, plan) * weights).sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    together = model(tokens, positions, plan).detach()
    model.zero_grad()
    for r, begin, n in apart:
        alone = model(tokens[r : r + 1, begin : begin + n])
        torch.testing.assert_close(together[r, begin : begin + n], alone[0].detach(), rtol=1e-10, atol=1e-10)
        (alone[0] * weights[r, begin : begin + n]).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-9, atol=1e-9, msg=name)


@given(st.lists(st.lists(st.integers(-1, 2), min_size=6, max_size=6), min_size=1, max_size=3))
def test_beginnings_cut_all_tokens_into_runs_of_one_document(rows: list[list[int]]) -> None:
    edges = [*beginnings(torch.tensor(rows)).tolist(), 6 * len(rows)]
    runs = [(r, value) for r, row in enumerate(rows) for value, _ in groupby(row)]
    assert [(edge // 6, rows[edge // 6][edge % 6]) for edge in edges[:-1]] == runs
    assert edges == sorted(set(edges))


def test_one_document_a_row_takes_the_plain_kernel() -> None:
    plain = SegmentPlan.build(torch.tensor([[0, 0, 0, -1], [0, 0, 0, 0]]))
    assert plain.shapes == ()
    assert plain.mask is None


def test_short_rows_take_a_mask_and_long_ones_are_gathered() -> None:
    several = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])
    masked, gathered = SegmentPlan.build(several, 4), SegmentPlan.build(several, 3)
    assert masked.mask is not None
    assert masked.shapes == ()
    assert gathered.mask is None
    assert gathered.shapes != ()


def test_flops_count_what_a_token_sees() -> None:
    for window in (None, 1, 5, 100):
        spec = SPEC.model_copy(update={"sliding_window": window})
        seen = sum(min(place + 1, window or 12) for place in range(12)) / 12
        weights = 2 * (16 * 32 + 16 * 16 + 3 * 16 * 24) + 31 * 16
        assert spec.flops_per_token(12, training=False) == 2 * weights + 4 * 2 * 16 * seen


def test_flops_count_the_experts_that_a_token_meets() -> None:
    experts = ExpertsSpec(num_experts=6, per_token=2, ffn_dim=10, shared_ffn_dim=4, dense_first=1)
    spec = SPEC.model_copy(update={"experts": experts})
    layer = 3 * 16 * (2 * 10 + 4) + 16 * 6
    dense = SPEC.flops_per_token(12, training=False)
    assert spec.flops_per_token(12, training=False) == dense + 2 * (layer - 3 * 16 * 24)
    unused = 3 * 16 * 10 * (6 - 2)
    assert spec.active_parameters == spec.num_parameters - unused
    assert SPEC.active_parameters == SPEC.num_parameters


EXPERTS = {"num_experts": 6, "per_token": 2, "ffn_dim": 10}


def test_parameters_are_counted_without_making_them() -> None:
    mixed = ExpertsSpec(**EXPERTS, shared_ffn_dim=10, dense_first=1)
    for update in (
        {},
        {"tied": False},
        {"qkv_bias": True},
        {"qk_norm": True},
        {"experts": ExpertsSpec(**EXPERTS)},
        {"experts": mixed},
    ):
        spec = SPEC.model_copy(update=update)
        assert spec.num_parameters == sum(p.numel() for p in Decoder(spec).parameters())
