"""The dynamic programme equals trying every combination; so does the cut into stages."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.plan.cuts import cut_alike
from shunter.plan.dynamic import programme, solve


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 24), st.integers(0, 10**6))
def test_it_equals_brute_force(layers: int, count: int, room: int, seed: int) -> None:
    if count**layers > 5000:
        layers = 4
    random = np.random.default_rng(seed)
    size = random.integers(0, 8, (layers, count))
    seconds = random.random((layers, count))
    change = random.random((count, count)) * random.integers(0, 2)
    best = float("inf")
    for chosen in product(range(count), repeat=layers):
        if sum(size[layer, s] for layer, s in enumerate(chosen)) > room:
            continue
        time = sum(seconds[layer, s] for layer, s in enumerate(chosen))
        time += sum(change[a, b] for a, b in pairwise(chosen))
        best = min(best, time)
    found, time, left = programme(size, seconds, change, room)
    assert time == pytest.approx(best)
    if found:
        assert left == room - sum(size[layer, s] for layer, s in enumerate(found))
        again = sum(seconds[layer, s] for layer, s in enumerate(found))
        again += sum(change[a, b] for a, b in pairwise(found))
        assert again == pytest.approx(best)
    else:
        assert best == float("inf")


def test_more_memory_changes_the_plan() -> None:
    size, seconds = np.array([[2.0, 1.0]] * 4), np.array([[1.0, 2.0]] * 4)
    assert [solve(size, seconds, None, room).count(0) for room in (4.1, 5.1, 6.1, 8.1, 9)] == [0, 1, 2, 4, 4]
    assert solve(size, seconds, None, 3.9) == []


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 10**6))
def test_the_slowest_stage_is_as_fast_as_it_can_be(stages: int, more: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = stages + more
    seconds = random.choice([1.0, 1.5, 2.0], stages).tolist()
    besides = random.choice([0.0, 0.7, 3.0], stages).tolist()

    def worst(bounds: list[int]) -> float:
        return max(besides[s] + (bounds[s + 1] - bounds[s]) * seconds[s] for s in range(stages))

    bounds = cut_alike(layers, seconds, besides)
    assert bounds[0] == 0
    assert bounds[-1] == layers
    assert all(a < b for a, b in pairwise(bounds))
    every = [[0, *inner, layers] for inner in combinations(range(1, layers), stages - 1)]
    assert worst(bounds) == pytest.approx(min(map(worst, every)))


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(ShunterError, match="3 layers cannot be cut into 4 stages"):
        cut_alike(3, [1.0] * 4, [0.0] * 4)
