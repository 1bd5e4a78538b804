"""Masks of dropout: numbers that look drawn, and belong to token, layer, operation and feature alone.

Not shown: that hashes of 32 bits pass every test of randomness; only means and correlations are looked at.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shunter.models.dropout import dropped, kept, token_keys

ROWS, LENGTH, WIDTH, SHARE = 8, 128, 96, 0.2


def keys(rows: int = ROWS, length: int = LENGTH) -> Tensor:
    numbers = torch.randint(0, 1 << 62, (rows,), generator=torch.Generator().manual_seed(1))
    return token_keys(numbers, torch.arange(length))


def signs(mask: Tensor) -> Tensor:
    """Of mean 0 and variance 1, where the mask is one of independent draws."""
    return (mask.double() - (1 - SHARE)) / (SHARE * (1 - SHARE)) ** 0.5


def test_masks_have_the_share_everywhere_and_no_neighbour_tells_of_another() -> None:
    """Six standard deviations: what chance would exceed once in 5e8."""
    mask = signs(kept(keys(), SHARE, 3, 1, 0, WIDTH))
    assert abs(float(mask.mean())) < 6 / mask.numel() ** 0.5
    for dims in ((0, 1), (0, 2), (1, 2)):
        assert float(mask.mean(dims).abs().max()) < 6 * (mask.numel() / mask.mean(dims).numel()) ** -0.5
    for dim in range(3):
        for by in (1, 2, 8):
            size = mask.shape[dim]
            both = mask.narrow(dim, by % size, size - by % size) * mask.narrow(dim, 0, size - by % size)
            if by < size:
                assert abs(float(both.mean())) < 6 / both.numel() ** 0.5, (dim, by)


def test_layers_operations_and_rows_have_masks_of_their_own() -> None:
    masks = [signs(kept(keys(), SHARE, layer, op, 0, WIDTH)) for layer in (-1, 0, 1, 2) for op in range(5)]
    for one, other in combinations(masks, 2):
        assert abs(float((one * other).mean())) < 6 / one.numel() ** 0.5


@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=4),
    places=st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=9),
    begin=st.integers(0, WIDTH - 1),
    data=st.data(),
)
def test_a_part_has_the_part_of_the_mask(
    rows: list[int], places: list[int], begin: int, data: st.DataObject
) -> None:
    """Any rows, any places, any range of features: what a rank holds."""
    end = data.draw(st.integers(begin + 1, WIDTH))
    numbers = torch.randint(0, 1 << 62, (ROWS,), generator=torch.Generator().manual_seed(1))
    part = kept(token_keys(numbers[rows], torch.tensor(places)), SHARE, 2, 0, begin, end - begin)
    assert torch.equal(part, kept(keys(), SHARE, 2, 0, 0, WIDTH)[rows][:, places, begin:end])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_stays_is_scaled_and_so_is_its_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, LENGTH, WIDTH, dtype=dtype, requires_grad=True)
    y = dropped(x, keys(), SHARE, 0, 1)
    mask = kept(keys(), SHARE, 0, 1, 0, WIDTH)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.where(mask, x / (1 - SHARE), 0))
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, (mask / (1 - SHARE)).to(dtype))
    assert dropped(x, keys(), 0.0, 0, 1) is x


def test_the_numbers_are_these() -> None:
    """A change of them would change every resumed run."""
    mask = kept(token_keys(torch.tensor([7, 1 << 40]), torch.arange(3)), 0.5, 1, 2, 5, 8)
    assert ["".join("01"[int(bit)] for bit in row) for row in mask.flatten(0, 1)] == [
        "00110010", "10001011", "00100001", "00010011", "00110011", "10111001"
    ]  # fmt: skip
