"""Weights in four and eight bits: the published table, the bound of the error, the bytes.

Not shown: speed on a GPU, and that a model's quality survives (arXiv 2305.14314, section 4, says so).
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shunter.layout.piece import Piece
from shunter.models import packed
from shunter.models.packed import BLOCK, GROUP, NF4, Kind, PackedWeight
from shunter.parallel.collect import cut


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_scales(weight: Tensor, kind: Kind) -> Tensor:
    """The same codes with scales in float32: what the second quantisation is compared with."""
    blocks = weight.view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    unit = blocks / largest
    if kind == "int8":
        return ((unit * 127).round() / 127 * largest).view(weight.shape)
    levels = torch.tensor(NF4)
    nearest = (unit[..., None] - levels).abs().argmin(dim=-1)
    return (levels[nearest] * largest).view(weight.shape)


def test_the_table_is_that_of_the_paper() -> None:
    """Equation 4 and appendix E: quantiles of N(0, 1), eight at or below zero and nine at or above."""
    normal_quantile = torch.distributions.Normal(0.0, 1.0).icdf
    offset = 0.9677083  # the outermost quantile, as published
    above = normal_quantile(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal_quantile(torch.linspace(offset, 0.5, 8)[:-1])
    values = torch.cat([above, torch.zeros(1), below]).sort().values
    torch.testing.assert_close(torch.tensor(NF4), values / values.abs().max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "size"), [("nf4", 0.5159), ("int8", 1.0159)])
def test_bytes_a_weight(kind: Kind, size: float) -> None:
    """4 (or 8) bits, 8 a block of 64 and 32 a group of 256 blocks (section 3, 'Double Quantization')."""
    weight = PackedWeight(normal(512, 512), kind)
    assert weight.nbytes / 512**2 == pytest.approx(size, abs=1e-4)


@pytest.mark.parametrize(("kind", "relative"), [("nf4", 0.10), ("int8", 0.008)])
def test_error_is_bounded_by_the_steps(kind: Kind, relative: float) -> None:
    original = normal(192, 320)
    found = PackedWeight(original, kind).weight(torch.float32)
    step = max(b - a for a, b in pairwise(NF4)) / 2 if kind == "nf4" else 0.5 / 127
    largest = original.view(-1, BLOCK).abs().amax(dim=1, keepdim=True)
    # Half a step of the table, and what the scale lost in its own quantisation.
    assert ((found - original).view(-1, BLOCK).abs() <= largest * (step + 0.012)).all()
    error = float((found - original).norm() / original.norm())
    assert error < relative
    once = float((exact_scales(original, kind) - original).norm() / original.norm())
    assert error < 1.03 * once + 5e-4, "scales of eight bits cost more than three percent of the error"


def test_integers_hold_the_scales_better_than_eight_bit_floats() -> None:
    """The one departure from the paper: the mean taken away, steps of one size fit normal weights better."""
    largest = normal(4096, 256).view(-1, BLOCK).abs().amax(dim=1)
    middle = largest - largest.mean()
    groups = middle.view(-1, GROUP)
    top = groups.abs().amax(dim=1, keepdim=True)
    integers = (groups / top * 127).round() / 127 * top
    floats = (groups / top * 448).to(torch.float8_e4m3fn).float() / 448 * top
    assert float((integers - groups).norm()) < 0.5 * float((floats - groups).norm())


@given(
    kind=st.sampled_from(["nf4", "int8"]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 700)),
    data=st.data(),
)
@settings(max_examples=60)
def test_a_part_reads_what_the_whole_reads_there(
    kind: Kind, shape: tuple[int, int], data: st.DataObject
) -> None:
    """Rows of several ranges, columns through bytes, blocks and groups: the same bits."""
    whole = PackedWeight(normal(*shape), kind)
    edges = data.draw(st.lists(st.integers(0, shape[0]), min_size=2, max_size=6, unique=True).map(sorted))
    rows = list(zip(edges[::2], edges[1::2], strict=False))
    begin = data.draw(st.integers(0, shape[1] - 1))
    piece = Piece.full(shape).take(0, *rows).take(1, (begin, data.draw(st.integers(begin + 1, shape[1]))))
    part = copy.deepcopy(whole)
    for name, held in whole.pieces(piece).items():
        setattr(part, name, torch.nn.Parameter(cut(getattr(whole, name).detach(), held), requires_grad=False))
    part.place(piece)
    expected = cut(whole.weight(torch.float32), piece)
    assert part.shape == expected.shape
    assert torch.equal(part.weight(torch.float32), expected)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("shape", [(3, 5), (1, 64), (7, 65), (257, 130)])
def test_any_shape(kind: Kind, shape: tuple[int, int]) -> None:
    original = normal(*shape)
    found = PackedWeight(original, kind).weight(torch.float64)
    assert found.shape == original.shape
    assert found.dtype == torch.float64
    assert float((found - original).abs().max()) < 0.16 * float(original.abs().max())


def test_zeros_and_single_large_values() -> None:
    assert not PackedWeight(torch.zeros(4, 64), "nf4").weight(torch.float32).any()
    spiky = torch.zeros(2, 128)
    spiky[1, 70] = -3.0
    for kind in ("nf4", "int8"):
        found = PackedWeight(spiky, kind).weight(torch.float32)
        assert float(found[1, 70]) == pytest.approx(-3.0, rel=0.01)
        assert math.isclose(float(found.abs().sum()), 3.0, rel_tol=0.01), "zero is one of the values"


def test_types_agree_and_nothing_trains() -> None:
    weight = PackedWeight(normal(8, 128), "nf4")
    wide = weight.weight(torch.float32)
    assert torch.equal(weight.weight(torch.bfloat16), wide.bfloat16())
    torch.testing.assert_close(weight.weight(torch.float64).float(), wide, rtol=1e-6, atol=0)
    assert not any(p.requires_grad for p in weight.parameters())
    copied = packed.PackedWeight(torch.zeros(8, 128), "nf4")
    copied.load_state_dict(weight.state_dict())
    assert torch.equal(copied.weight(torch.float32), wide)
