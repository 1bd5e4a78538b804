"""Every builder: complete, runnable, within its memory, and as short as is known to be possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT, counts
from shunter.schedule.assemble import assemble
from shunter.schedule.builders import controlled, rounds, single, vee
from shunter.schedule.costs import Costs
from shunter.schedule.order import Order, looped
from shunter.schedule.simulate import Simulation, simulate
from tests.draws import some


def run(order: Order, released_at_input: float = 0.0) -> Simulation:
    program = assemble(order, released_at_input=released_at_input)
    return simulate(program, Costs.even(order.placement))


BUILDERS = {
    "gpipe": single.gpipe,
    "1f1b": single.one_f_one_b,
    "interleaved": rounds.interleaved,
    "interleaved zero bubble": rounds.interleaved_zero_bubble,
    "breadth first": rounds.looped_breadth_first,
    "depth first": rounds.looped_depth_first,
    "zb2p": controlled.zero_bubble_2p,
    "zbv": vee.zero_bubble_v,
    "v-half": controlled.v_half,
    "v-min": controlled.v_min,
}


@given(st.sampled_from(sorted(BUILDERS)), st.integers(1, 7), st.integers(0, 9))
def test_complete_and_runnable(name: str, ranks: int, more: int) -> None:
    microbatches = ranks + more
    order = BUILDERS[name](ranks, microbatches)
    found = counts(order.actions)
    for stage in range(order.stages):
        assert found[FORWARD, stage] == microbatches
        whole, halves = found.get((BACKWARD, stage), 0), found.get((INPUT, stage), 0)
        assert whole + halves == microbatches
        assert found.get((WEIGHT, stage), 0) == halves
    found_times = run(order)
    assert found_times.elapsed >= 3 * microbatches
    assert len(found_times.critical_path()) > 0


@given(st.integers(1, 6), st.integers(0, 8))
def test_dual_pipe_v_is_complete(ranks: int, more: int) -> None:
    order = vee.dual_pipe_v(ranks, 2 * ranks + more)
    found = counts(order.actions)
    for stage in range(order.stages):
        done = found.get((BACKWARD, stage), 0) + found.get((INPUT, stage), 0)
        assert found[FORWARD, stage] == done == 2 * ranks + more
    run(order)


# Elapsed time and peak activations at p = 8, m = 16 with F = I = W = 1 a rank. The first six are those of
# sail-sg's generators; its v-min takes 61.5.
KNOWN = {
    "1f1b": (69.0, 8),
    "interleaved": (58.5, 11.5),
    "interleaved zero bubble": (55.0, 8),
    "zb2p": (55.0, 16),
    "zbv": (51.5, 8),
    "v-half": (56.5, 5),
    "v-min": (59.5, 4),
}


@pytest.mark.parametrize("name", KNOWN)
def test_as_short_as_known(name: str) -> None:
    found = run(BUILDERS[name](8, 16))
    assert found.elapsed <= KNOWN[name][0]
    assert max(found.peak_activations) <= KNOWN[name][1]
    longer = run(BUILDERS[name](8, 32))
    assert longer.elapsed <= KNOWN[name][0] + 48
    assert max(longer.peak_activations) <= KNOWN[name][1]


@some(
    ("ranks", "half", "least"),
    [(4, 26.5, 26.5), (12, 86.5, 91), (6, 41.5, 41.5), (10, 71.5, 75.5), (16, 118, 126)],
    every=3,
)
def test_v_schedules_at_other_sizes(ranks: int, half: float, least: float) -> None:
    """Twice as many micro-batches as ranks. Those of v-half for four and six ranks are proven by CP-SAT."""
    assert run(controlled.v_half(ranks, 2 * ranks)).elapsed <= half
    assert run(controlled.v_min(ranks, 2 * ranks)).elapsed <= least


@pytest.mark.parametrize("name", ["zb2p", "zbv"])
def test_zero_bubble_is_true_of_the_span(name: str) -> None:
    for ranks, microbatches in ((2, 8), (4, 8), (8, 32)):
        assert run(BUILDERS[name](ranks, microbatches)).longest_span == 3 * microbatches


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_idle_over_ideal_is_the_published_formula(ranks: int, factor: int) -> None:
    microbatches = ranks * factor
    for order in (single.gpipe(ranks, microbatches), single.one_f_one_b(ranks, microbatches)):
        assert run(order).idle_over_ideal == pytest.approx((ranks - 1) / microbatches)
    for chunks in (2, 3, 4):
        order = rounds.interleaved(ranks, microbatches, chunks)
        found = run(order)
        assert found.idle_over_ideal == pytest.approx((ranks - 1) / (chunks * microbatches))
        live = (2 * (ranks - 1) + (chunks - 1) * ranks + 1) / chunks
        assert found.peak_activations[0] == pytest.approx(min(live, microbatches))


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 9), st.integers(0, 3))
def test_interleaving_is_the_published_table(ranks: int, chunks: int, more: int, wider: int) -> None:
    """arXiv 2104.04473, written down once more: groups of N, chunk by chunk; w forwards ahead."""
    microbatches = ranks + more
    group = min(ranks + wider, microbatches)
    if 0 < microbatches % group < ranks:
        return
    pairs = []
    for begin in range(0, microbatches, group):
        for chunk in range(chunks):
            pairs += [(m, chunk) for m in range(begin, min(begin + group, microbatches))]
    order = rounds.interleaved(ranks, microbatches, chunks, group=group)
    for rank, actions in enumerate(order.actions):
        forwards = [f"{chunk * ranks + rank}F{m}" for m, chunk in pairs]
        backwards = [f"{(chunks - 1 - chunk) * ranks + rank}B{m}" for m, chunk in pairs]
        ahead = min(2 * (ranks - rank - 1) + (chunks - 1) * group, microbatches * chunks)
        expected = forwards[:ahead]
        for forward, backward in zip(forwards[ahead:], backwards, strict=False):
            expected += [forward, backward]
        expected += backwards[len(forwards) - ahead :]
        assert [str(action) for action in actions] == expected


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_live_activations_of_every_rank(ranks: int) -> None:
    microbatches = 2 * ranks
    assert run(single.one_f_one_b(ranks, microbatches)).peak_activations == [
        ranks - rank for rank in range(ranks)
    ]
    for chunks in (2, 3, 4):
        found = run(rounds.interleaved(ranks, microbatches, chunks)).peak_activations
        for rank in range(ranks):
            live = (2 * (ranks - rank - 1) + (chunks - 1) * ranks + 1) / chunks
            assert found[rank] == pytest.approx(min(live, microbatches))


@pytest.mark.parametrize(
    ("cap", "released_at_input", "best"),
    [(2, 0, 41), (3, 0, 31), (4, 0, 27), (2, 1, 35), (3, 1, 28), (4, 1, 27)],
)
def test_proven_optima_under_a_cap(cap: int, released_at_input: float, best: float) -> None:
    """p = 4, m = 8; proven by CP-SAT for these costs."""
    order = controlled.capped(looped(4, 1), 8, cap, released_at_input=released_at_input)
    found = run(order, released_at_input)
    assert found.elapsed == best
    assert max(found.peak_activations) <= cap


@given(
    st.integers(1, 5),
    st.integers(1, 10),
    st.integers(1, 6),
    st.lists(st.floats(0.1, 3), min_size=15, max_size=15),
    st.floats(0, 1),
)
def test_a_cap_is_kept_whatever_the_costs(
    ranks: int, microbatches: int, cap: int, seconds: list[float], released_at_input: float
) -> None:
    keys = [(op, stage) for op in (FORWARD, INPUT, WEIGHT) for stage in range(ranks)]
    costs = Costs(dict(zip(keys, seconds, strict=False)))
    order = controlled.capped(
        looped(ranks, 1), microbatches, cap, costs=costs, released_at_input=released_at_input
    )
    found = simulate(assemble(order, released_at_input=released_at_input), costs)
    assert max(found.peak_activations) <= cap + 1e-6


def test_the_card_s_example_of_interleaving() -> None:
    order = rounds.interleaved(4, 8, 2)
    assert " ".join(map(str, order.actions[3])).startswith(
        "3F0 3F1 3F2 3F3 7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 3F4 3B0 3F5 3B1"
    )
    assert " ".join(map(str, order.actions[0])).startswith(
        "0F0 0F1 0F2 0F3 4F0 4F1 4F2 4F3 0F4 0F5 0F6 4B0 0F7 4B1 4F4 4B2"
    )


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ShunterError, match="fewer than the 4 ranks"):
        rounds.interleaved(4, 3)
    with pytest.raises(ShunterError, match="the smallest is 5"):
        rounds.interleaved(4, 10, group=4)
    with pytest.raises(ShunterError, match="not between"):
        rounds.interleaved(4, 8, group=3)
    with pytest.raises(ShunterError, match="fewer than the 8 stages"):
        vee.dual_pipe_v(4, 7)
    with pytest.raises(ShunterError, match="has no room"):
        controlled.capped(looped(4, 1), 8, 0.5)
