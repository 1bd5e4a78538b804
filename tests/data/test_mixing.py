"""Shares of a mixture: exact by weight, within the limit on repeats, by no order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.mixing import copies, ranks, shares

sizes_ = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**6), min_size=1)
weights_ = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 10), min_size=1)


@given(sizes_, weights_, st.integers(1, 10**7), st.floats(0.5, 5), st.booleans())
def test_no_group_gives_more_than_it_has(
    sizes: dict[str, int], weights: dict[str, float], budget: int, epochs: float, spread: bool
) -> None:
    found = shares(sizes, weights, budget, epochs, spread)
    assert set(found) == set(sizes)
    for name, part in found.items():
        assert 0 <= part.given <= epochs * sizes[name] * (1 + 1e-9)
        assert part.given == 0 or weights.get(name, 0) > 0
    total = sum(part.given for part in found.values())
    assert total <= budget * (1 + 1e-9) + 1
    room = sum(epochs * size for name, size in sizes.items() if weights.get(name, 0) > 0)
    if spread:
        assert total == pytest.approx(min(budget, room), abs=2, rel=1e-6)


def test_by_weight_and_without_a_budget() -> None:
    found = shares({"a": 100, "b": 1000}, {"a": 1, "b": 3}, 40)
    assert [found[name].given for name in "ab"] == [10, 30]
    largest = shares({"a": 100, "b": 1000}, {"a": 1, "b": 1}, None, epochs=2)
    assert [largest[name].given for name in "ab"] == [200, 200]
    assert largest["b"].epochs == 0.2
    natural = shares({"a": 100, "b": 300}, None, None, epochs=1)
    assert [natural[name].given for name in "ab"] == [100, 300]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.floats(0, 4))
def test_copies_come_near(sizes: list[int], epochs: float) -> None:
    amounts = np.array(sizes)
    given_ = epochs * amounts.sum()
    found = copies(amounts, ranks(0, [f"d{n}" for n in range(len(sizes))]), given_)
    assert found.max() - found.min() <= 1
    assert abs((found * amounts).sum() - given_) <= amounts.max() / 2 + 1e-6


def test_order_and_company_do_not_matter() -> None:
    names = [f"web:{n}" for n in range(50)]
    own = ranks(3, names)
    assert np.array_equal(ranks(3, names[::-1]), own[::-1])
    assert not np.array_equal(ranks(4, names), own)
    amounts = np.arange(1, 51)
    assert np.array_equal(copies(amounts[::-1], own[::-1], 600), copies(amounts, own, 600)[::-1])
