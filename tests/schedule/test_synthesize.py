"""Synthesis: within every cap, complete, no worse than its start, not below its bound, always the same."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
import time
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import MissingExtra, ShunterError
from shunter.schedule import exact
from shunter.schedule.action import counts
from shunter.schedule.assemble import assemble
from shunter.schedule.bound import lower_bound
from shunter.schedule.builders import controlled, rounds, single
from shunter.schedule.check import check
from shunter.schedule.costs import Costs, Links
from shunter.schedule.local_search import anneal
from shunter.schedule.order import Order, looped, vee
from shunter.schedule.simulate import simulate
from shunter.schedule.synthesize import Synthesis, synthesize
from shunter.schedule.words import Problem
from tests.draws import examples, some

solver = pytest.mark.skipif(
    importlib.util.find_spec("ortools") is None, reason="OR-Tools is not installed (extra `solve`)"
)

# Proven by CP-SAT for p = 4, m = 8, F = I = W = 1: cap, share released at the input's gradient, elapsed.
OPTIMA = [(2, 0, 41), (3, 0, 31), (4, 0, 27), (2, 1, 35), (3, 1, 28), (4, 1, 27)]


@st.composite
def cases(draw: st.DrawFn, most: int = 6) -> tuple[tuple[int, ...], int, Costs, list[float], Links, float]:
    """Placement, micro-batches, costs, caps, links, share released at the input's gradient."""
    ranks = draw(st.integers(1, 4))
    placement = draw(st.sampled_from([looped(ranks, 1), looped(ranks, 2), looped(ranks, 3), vee(ranks)]))
    times = st.floats(0, 3) | st.sampled_from([0.0, 1.0, 1 / 3])
    costs = Costs({(op, s): draw(times) for op in "FIW" for s in range(len(placement))})
    caps = draw(st.lists(st.floats(1, 5) | st.just(math.inf), min_size=ranks, max_size=ranks))
    links = Links(latency=draw(st.sampled_from([0.0, 0.5, 2.0])), occupied=draw(st.sampled_from([0.0, 0.7])))
    return placement, draw(st.integers(1, most)), costs, caps, links, draw(st.sampled_from([0.0, 0.4, 1.0]))


def sound(found: Synthesis, placement: tuple[int, ...], m: int, caps: list[float], early: float) -> None:
    """Complete, without deadlock, within the caps; proven only where it meets the bound."""
    assert counts(found.order.actions) == {(op, s): m for op in "FIW" for s in range(len(placement))}
    check(assemble(found.order, released_at_input=early), cap=caps)
    assert found.bound <= found.elapsed
    assert found.proven == (found.elapsed <= found.bound * (1 + 1e-5))


@settings(max_examples=examples(8, 60))
@given(cases())
def test_within_every_cap_and_no_worse_than_what_it_begins_with(case) -> None:  # type: ignore[no-untyped-def]
    placement, m, costs, caps, links, early = case
    found = synthesize(placement, m, costs, caps, links=links, released_at_input=early, seconds=0.01)
    sound(found, placement, m, caps, early)
    run = simulate(assemble(found.order, released_at_input=early), costs, links)
    assert found.elapsed == run.elapsed
    listed = controlled.capped(placement, m, caps, costs=costs, released_at_input=early, links=links)
    halves = simulate(assemble(listed, released_at_input=early), costs, links).elapsed
    assert found.elapsed <= halves * (1 + 1e-9)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 3), st.floats(0, 2))
def test_words_time_as_the_simulator_does(ranks: int, more: int, chunks: int, latency: float) -> None:
    order = rounds.interleaved_zero_bubble(ranks, ranks + more, chunks)
    costs = Costs({(op, s): 0.3 + (7 * s + ord(op)) % 5 for op in "FIW" for s in range(order.stages)})
    links = Links(latency=latency)
    problem = Problem(order.placement, order.microbatches, costs, [math.inf] * ranks, links=links)
    words = problem.words(order)
    times = problem.times(words)
    assert times is not None
    program = assemble(problem.order(words))
    assert times.elapsed == pytest.approx(simulate(program, costs, links).elapsed)
    assert lower_bound(problem) <= times.elapsed + 1e-9
    path = problem.critical(words, times, lambda among: among[0])
    length = sum(problem.cost[words[rank][place]] for rank, place in path)
    hops = sum(a != b for (a, _), (b, _) in pairwise(path))
    assert length + hops * latency == pytest.approx(times.elapsed)


@given(cases(most=4))
def test_the_bound_holds_for_any_order_that_fits(case) -> None:  # type: ignore[no-untyped-def]
    """One micro-batch after the other, and what a hot search makes of it."""
    placement, m, costs, caps, links, early = case
    problem = Problem(placement, m, costs, caps, links=links, released_at_input=early)
    made = controlled.listed(placement, m, caps, controlled.in_turn(placement), costs, early, links)
    assert made is not None, "one micro-batch after the other does not fit"
    words = anneal(problem, problem.words(made[0]), 0.02, goal=0.0)
    times = problem.times(words)
    assert times is not None
    assert all(problem.fits(rank, word) for rank, word in enumerate(words))
    assert lower_bound(problem) <= times.elapsed * (1 + 1e-9) <= made[1] * (1 + 1e-8)


@pytest.mark.parametrize(("cap", "early", "best"), OPTIMA)
def test_proven_optima_are_reached_without_a_solver(cap: float, early: float, best: float) -> None:
    placement = looped(4, 1)
    found = synthesize(placement, 8, Costs.even(placement), cap, released_at_input=early, seconds=0.05)
    assert found.elapsed == best
    sound(found, placement, 8, [cap] * 4, early)


def test_the_search_improves_uneven_costs() -> None:
    placement = looped(4, 1)
    draw = random.Random(7)
    costs = Costs({(op, s): draw.uniform(0.5, 1.5) for op in "FIW" for s in range(4)})
    begin = synthesize(placement, 8, costs, [4, 3, 3, 2], seconds=0)
    found = synthesize(placement, 8, costs, [4, 3, 3, 2], seconds=1)
    assert found.how == "local search"
    assert found.elapsed < begin.elapsed
    again = synthesize(placement, 8, costs, [4, 3, 3, 2], seconds=1)
    assert again == found, "the same arguments gave another order"


def test_no_cap_is_no_obstacle() -> None:
    placement = looped(3, 1)
    found = synthesize(placement, 6, Costs.even(placement), math.inf)
    assert (found.elapsed, found.proven) == (20.0, True)


def test_links_that_are_occupied_count_in_the_elapsed_time() -> None:
    placement, links = looped(2, 1), Links(latency=0.5, occupied=1.5)
    found = synthesize(placement, 4, Costs.even(placement), 4, links=links, seconds=0.1)
    assert found.elapsed == simulate(assemble(found.order), Costs.even(placement), links).elapsed


@pytest.mark.parametrize(
    ("caps", "text"),
    [
        (0.5, "rank 0 has no room for 3F0"),
        ([1, 0.9, 1], "rank 1 has no room for 4F0"),
        ([1, 1, -2], "rank 2 has no room for 2F0"),
        ([1, 1], "2 caps for 3 ranks"),
        (math.nan, "the cap of rank 0 is no number"),
    ],
)
def test_a_cap_that_nothing_satisfies(caps: float | list[float], text: str) -> None:
    placement = looped(3, 2)
    with pytest.raises(ShunterError, match=text):
        synthesize(placement, 4, Costs.even(placement), caps)


def test_arguments_out_of_range() -> None:
    costs = Costs.even((0, 1))
    with pytest.raises(ShunterError, match="micro-batches are 0"):
        synthesize((0, 1), 0, costs, 2)
    with pytest.raises(ShunterError, match="share released"):
        synthesize((0, 1), 2, costs, 2, released_at_input=1.5)
    with pytest.raises(ShunterError, match="cost of F on stage 0 is -1"):
        synthesize((0, 1), 2, Costs({("F", 0): -1.0}), 2)
    with pytest.raises(ShunterError, match="seconds are nan"):
        synthesize((0, 1), 2, costs, 2, seconds=math.nan)


def test_a_proof_without_the_solver_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(MissingExtra, match=r"shunter\[solve\]"):
        synthesize(looped(4, 1), 8, Costs.even(looped(4, 1)), 2, prove=True, seconds=1e6)


@solver
@pytest.mark.parametrize(("cap", "early", "best"), OPTIMA)
def test_the_optima_are_proven(cap: float, early: float, best: float) -> None:
    placement = looped(4, 1)
    found = synthesize(
        placement, 8, Costs.even(placement), cap, released_at_input=early, seconds=1, prove=True
    )
    assert (found.elapsed, found.proven) == (best, True)


@solver
def test_the_solver_improves_a_bad_start_and_does_so_again() -> None:
    placement, costs = looped(3, 1), Costs({(op, s): 1 / 3 + s / 7 for op in "FIW" for s in range(3)})
    problem = Problem(placement, 5, costs, [2, 2, 2])
    bad = controlled.listed(placement, 5, 2, controlled.in_turn(placement), costs)
    assert bad is not None
    words, bound = exact.prove(problem, problem.words(bad[0]), 0.0, 5)
    times = problem.times(words)
    assert times is not None
    assert times.elapsed < bad[1]
    assert times.elapsed == pytest.approx(bound)
    assert exact.prove(problem, problem.words(bad[0]), 0.0, 5) == (words, bound)


@solver
@some("even", [False, True])
def test_a_proof_that_is_not_found_takes_about_as_long_as_asked(even: bool) -> None:
    """By the clock of the search, which counts operations: seconds differ between machines."""
    placement, draw, seconds = vee(8), random.Random(0), 0.5
    costs = Costs.even(placement)
    if not even:
        costs = Costs({key: value * draw.uniform(0.5, 1.5) for key, value in costs.seconds.items()})
    problem = Problem(placement, 16, costs, [5] * 8)
    words = problem.words(controlled.capped(placement, 16, 5, costs=costs))
    begin = time.process_time()
    anneal(problem, words, seconds, goal=0.0)
    between = time.process_time()
    exact.prove(problem, words, 0.0, seconds)
    assert time.process_time() - between <= 4 * (between - begin)


@solver
@settings(max_examples=examples(8, 100))
@given(cases(most=3))
def test_a_proof_agrees_with_all_that_is_known(case) -> None:  # type: ignore[no-untyped-def]
    placement, m, costs, caps, links, early = case
    found = synthesize(
        placement, m, costs, caps, links=links, released_at_input=early, seconds=0.05, prove=True
    )
    sound(found, placement, m, caps, early)


@solver
def test_what_is_too_large_to_prove_is_refused() -> None:
    placement = looped(8, 1)
    with pytest.raises(ShunterError, match="too many to prove"):
        synthesize(placement, 1000, Costs.even(placement), 8, prove=True)


def brute(placement: tuple[int, ...], m: int, costs: Costs, cap: float) -> float:
    """Shortest of all schedules by trying every order of one rank after the other (tiny cases alone)."""
    problem = Problem(placement, m, costs, [cap] * (1 + max(placement)))
    best = math.inf

    def words(rank: int, left: dict[int, int], word: list[int]) -> list[list[int]]:
        if not any(left.values()):
            return [word]
        found: list[list[int]] = []
        for letter in left:
            longer = [*word, letter]
            if left[letter] and problem.fits(rank, longer):
                found += words(rank, {**left, letter: left[letter] - 1}, longer)
        return found

    choices = [words(rank, dict.fromkeys(problem.letters(rank), m), []) for rank in range(problem.ranks)]
    for first in choices[0]:
        for second in choices[1]:
            times = problem.times([first, second])
            best = min(best, times.elapsed if times is not None else math.inf)
    return best


@pytest.mark.parametrize("cap", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_ranks_reach_the_best_of_all_orders(cap: int, seed: int) -> None:
    placement = (0, 1)
    costs = Costs(
        {(op, s): float(Fraction(2 + (seed + 3 * s + ord(op)) % 5, 2)) for op in "FIW" for s in (0, 1)}
    )
    best = brute(placement, 3, costs, cap)
    found = synthesize(placement, 3, costs, cap, seconds=0.3)
    assert found.elapsed == pytest.approx(best)
    assert found.bound <= best + 1e-9


def test_an_order_without_halves_gets_them() -> None:
    order = single.one_f_one_b(2, 3)
    problem = Problem(order.placement, 3, Costs.even(order.placement), [2, 2])
    assert isinstance(halves := problem.order(problem.words(order)), Order)
    assert counts(halves.actions)["W", 1] == 3
