"""Weights in oneDNN's order: the same products, and a copy that is made anew when weights are new.

Cannot show: that it is faster (bench/rollout.py measures), nor what another processor's kernels round.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shunter.models.decode import Stepper
from shunter.models.decoder import Decoder
from shunter.models.weights import Ordered, OrderedGate, Plain, PlainGate, gated, head, linear, ordered
from tests.models.small import redraw, spec_of

pytestmark = pytest.mark.skipif(not ordered(torch.zeros(1)), reason="torch was built without oneDNN")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_products_and_what_follows_them_are_the_same(rows: int, width: int, out: int, biased: bool) -> None:
    x, to, weight = drawn(rows, width), drawn(rows, out), drawn(out, width)
    bias = drawn(out) if biased else None
    plain, copy = Plain(weight, bias), Ordered(weight, bias)
    with torch.inference_mode():
        before = to.clone()
        torch.testing.assert_close(copy(x), plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(copy.added(x, to), plain.added(x, to), rtol=1e-5, atol=1e-5)
        assert torch.equal(to, before)
        both = drawn(2 * out, width)
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(OrderedGate(both)(x), PlainGate(Plain(both))(x), **close)


def test_what_is_copied() -> None:
    """Only where it is faster, and only when it is asked for."""
    one = nn.Linear(4, 6)
    assert isinstance(linear(one, True), Ordered)
    assert isinstance(gated(one, True), OrderedGate)
    assert isinstance(head(one.weight, True), Ordered)
    assert isinstance(linear(one, False), Plain)
    assert isinstance(linear(one.double(), True), Plain)
    assert isinstance(gated(one, True), PlainGate)


def test_a_large_model_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(spec_of("qwen3-tied"))
    redraw(decoder)
    assert isinstance(Stepper(decoder, copy=True).head, Ordered)
    monkeypatch.setattr("shunter.models.decode.COPIED", 4 * decoder.spec.num_parameters - 1)
    assert isinstance(Stepper(decoder, copy=True).head, Plain)
