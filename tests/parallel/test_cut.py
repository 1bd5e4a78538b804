"""Cuts: as good as the best of all where all can be tried; the head counts."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.parallel.cut import cut_layers, loads
from shunter.schedule.order import looped, vee


def all_cuts(layers: int, stages: int) -> list[list[int]]:
    return [[0, *inner, layers] for inner in combinations(range(1, layers), stages - 1)]


costs = st.lists(st.floats(0.1, 5), min_size=4, max_size=9)


@given(costs, st.integers(1, 4), st.floats(0, 5), st.floats(0, 10))
def test_no_cut_is_better_with_one_stage_a_rank(
    costs: list[float], ranks: int, first: float, last: float
) -> None:
    placement = looped(ranks, 1)
    found = max(loads(cut_layers(costs, placement, first, last), costs, placement, first, last))
    best = min(max(loads(cut, costs, placement, first, last)) for cut in all_cuts(len(costs), ranks))
    assert found == pytest.approx(best)


@given(costs, st.floats(0, 10))
def test_with_two_stages_a_rank_it_is_near_the_best(costs: list[float], last: float) -> None:
    for placement in (vee(2), looped(2, 2)):
        cut = cut_layers(costs, placement, 0, last)
        assert all(a < b for a, b in pairwise(cut))
        found = max(loads(cut, costs, placement, 0, last))
        best = min(max(loads(cut, costs, placement, 0, last)) for cut in all_cuts(len(costs), 4))
        assert found <= best + max(costs)


def test_a_heavy_head_takes_layers_off_the_last_stage() -> None:
    assert cut_layers([1.0] * 12, looped(4, 1)) == [0, 3, 6, 9, 12]
    assert cut_layers([1.0] * 13, looped(4, 1), last=3.0) == [0, 4, 8, 12, 13]
    # On a V the rank with the head has the first stage as well: it can give layers away at both ends.
    cut = cut_layers([1.0] * 14, vee(2), last=2.0)
    assert max(loads(cut, [1.0] * 14, vee(2), last=2.0)) == 8.0


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(ShunterError, match="3 layers cannot be cut into 4 stages"):
        cut_layers([1.0] * 3, looped(4, 1))


def test_a_cut_by_cost_beats_one_by_count() -> None:
    """Eight layers of which the last two are six times as heavy, over four ranks: simulated step times."""
    from shunter.schedule.assemble import assemble
    from shunter.schedule.catalogue import schedule
    from shunter.schedule.costs import Costs
    from shunter.schedule.simulate import simulate

    costs, placement = [1.0] * 6 + [6.0] * 2, looped(4, 1)
    program = assemble(schedule("gpipe").build(4, 16))
    elapsed = {}
    for name, cut in {"count": [0, 2, 4, 6, 8], "cost": cut_layers(costs, placement)}.items():
        parts = [sum(costs[a:b]) for a, b in pairwise(cut)]
        seconds = {(op, stage): part for stage, part in enumerate(parts) for op in "FIW"}
        elapsed[name] = simulate(program, Costs(seconds)).elapsed
    assert elapsed["cost"] < 0.6 * elapsed["count"]
