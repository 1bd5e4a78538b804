"""Vocabulary passes in any order: counts, memory, the card's speed-ups, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.schedule.action import EMBED, EMBED_BACK, HEAD, SOFTMAX, VOCABULARY, Action
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import SCHEDULES, schedule
from shunter.schedule.check import check
from shunter.schedule.costs import Costs
from shunter.schedule.lower import lower
from shunter.schedule.meetings import STATS, VOCABULARY_LANE
from shunter.schedule.order import Order
from shunter.schedule.simulate import simulate
from shunter.schedule.text import read_program, write_program
from shunter.schedule.vocabulary import parallel_vocabulary, with_head

NAMES = sorted(set(SCHEDULES) - {"dualpipev", "forward-only"})


@pytest.mark.parametrize("algorithm", [1, 2])
@given(st.sampled_from(NAMES), st.integers(1, 9), st.integers(1, 20), st.floats(0.01, 5.0))
def test_any_order_takes_them(algorithm: int, name: str, ranks: int, microbatches: int, head: float) -> None:
    """Each rank does each pass once for each micro-batch, keeps one softmax at a time, and holds no more than
    a micro-batch more for each barrier; the program is sound with its messages."""
    try:
        before = schedule(name).build(ranks, microbatches)
    except ShunterError:
        return  # the schedule has no such shape
    order = parallel_vocabulary(before, algorithm, head=head)
    program = lower(assemble(order))
    check(program)
    for rank in range(ranks):
        actions = order.actions[rank]
        counts = Counter(action.op for action in actions if action.op in VOCABULARY)
        assert counts == dict.fromkeys((SOFTMAX, HEAD, EMBED, EMBED_BACK), microbatches)
        softmaxes = [action.op for action in actions if action.op in (SOFTMAX, HEAD)]
        assert softmaxes == [SOFTMAX, HEAD] * microbatches
        own = [action for action in actions if action.op not in VOCABULARY]
        assert sorted(own) == sorted(before.actions[rank])
    costs = Costs.even(order.placement)
    plain = simulate(assemble(before), costs).peak_activations
    more = simulate(program, with_head(costs, program, head)).peak_activations
    barriers = {1: 2, 2: 1}[algorithm]
    assert all(b <= a + barriers + 1e-9 for a, b in zip(plain, more, strict=True))


@pytest.mark.parametrize(("algorithm", "held"), [(1, 6), (2, 5)])
def test_one_f_one_b_holds_what_the_paper_says(algorithm: int, held: int) -> None:
    order = parallel_vocabulary(schedule("1f1b").build(4, 16), algorithm)
    found = simulate(assemble(order), Costs.even(order.placement))
    assert found.peak_activations[0] == held


@pytest.mark.parametrize(
    ("algorithm", "share", "faster"),
    [(1, 0.25, 1.14), (1, 1.0, 1.52), (1, 2.0, 1.88), (2, 0.25, 1.14), (2, 1.0, 1.52), (2, 2.0, 1.895)],
)
def test_the_head_on_all_ranks_is_faster_by(algorithm: int, share: float, faster: float) -> None:
    """Four ranks, sixteen micro-batches, f = 1, b = 2, a head of `share` of a stage."""
    before = schedule("1f1b").build(4, 16)
    costs = Costs.even(before.placement)
    naive_program = assemble(before)
    naive = simulate(naive_program, with_head(costs, naive_program, share))
    program = assemble(parallel_vocabulary(before, algorithm, costs, share))
    ours = simulate(program, with_head(costs, program, share))
    assert naive.elapsed / ours.elapsed >= faster
    assert ours.idle_over_ideal <= 3 / 16 + 0.02


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_stopping_together_is_slower(ranks: int) -> None:
    """The interlaced baseline holds what 1F1B holds, and waits at each barrier."""
    order = schedule("1f1b").build(ranks, 4 * ranks)
    costs = Costs.even(order.placement)
    together, apart = (assemble(parallel_vocabulary(order, 2, costs, 1.0, delay=d)) for d in (0, None))
    slow, fast = (simulate(program, with_head(costs, program, 1.0)) for program in (together, apart))
    assert max(slow.peak_activations) == ranks
    assert slow.elapsed > 1.05 * fast.elapsed


def test_forward_only_gets_the_loss_alone() -> None:
    order = parallel_vocabulary(schedule("forward-only").build(3, 5), 2)
    assert {action.op for action in order.actions[1]} == {"F", EMBED, SOFTMAX}
    check(lower(assemble(order)))


def test_text_and_back() -> None:
    order = parallel_vocabulary(schedule("v-half").build(4, 8), 1)
    program = lower(assemble(order))
    again = read_program(write_program(program, order))
    assert all(again.lane(rank, VOCABULARY_LANE) for rank in range(4))
    for lane, ids in program.order.items():
        told = [program.nodes[id].action for id in ids]
        assert [again.nodes[id].action for id in again.order[lane]] == told
    costs = with_head(Costs.even(order.placement), program, 1.0)
    assert simulate(again, costs).elapsed == simulate(program, costs).elapsed


def two_ranks() -> Order:
    return parallel_vocabulary(schedule("1f1b").build(2, 4), 2)


def edited(order: Order, rank: int, *, drop: Action | None = None, drop_met: Action | None = None) -> Order:
    actions, met = list(order.actions), list(order.collectives)
    actions[rank] = tuple(action for action in actions[rank] if action != drop)
    met[rank] = tuple(action for action in met[rank] if action != drop_met)
    return Order(order.placement, tuple(actions), order.microbatches, tuple(met))


def test_a_pass_left_out_is_named() -> None:
    with pytest.raises(ShunterError, match="rank 1 never does T of micro-batch 2"):
        assemble(edited(two_ranks(), 1, drop=Action(1, HEAD, 2)))
    with pytest.raises(ShunterError, match="rank 0 never does STATS of micro-batch 3"):
        assemble(edited(two_ranks(), 0, drop_met=Action(1, STATS, 3)))
    order = two_ranks()
    with pytest.raises(ShunterError, match="never does EMBED of micro-batch 0"):
        assemble(Order(order.placement, order.actions, order.microbatches))


def test_ranks_that_meet_in_another_order_are_refused() -> None:
    order = two_ranks()
    met = list(order.collectives[1])
    met[0], met[-1] = met[-1], met[0]
    crossed = Order(order.placement, order.actions, order.microbatches, (order.collectives[0], tuple(met)))
    with pytest.raises(ShunterError, match=r"rank 0 .* and rank 1 .* are next on lane 'vocabulary'"):
        check(assemble(crossed))


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_softmax_is_not_overwritten_before_its_gradient(algorithm: int, rank: int) -> None:
    """T2 moved behind S3 by hand: with one barrier nothing waits for itself, but the softmax is gone."""
    order = parallel_vocabulary(schedule("1f1b").build(2, 6), algorithm)
    row = [action for action in order.actions[rank] if action != Action(1, HEAD, 2)]
    row.insert(row.index(Action(1, SOFTMAX, 3)) + 1, Action(1, HEAD, 2))
    actions = list(order.actions)
    actions[rank] = tuple(row)
    edited = Order(order.placement, tuple(actions), order.microbatches, order.collectives)
    program = assemble(edited)
    if algorithm == 2:
        simulate(program, Costs({}))
    with pytest.raises(
        ShunterError, match=f"rank {rank} 1S3 overwrites the softmax of micro-batch 2 before 1T2 uses it"
    ):
        check(program)
    with pytest.raises(ShunterError, match="1S3 overwrites the softmax"):
        check(read_program(write_program(lower(program), edited)))


def test_a_gradient_of_the_head_needs_its_softmax() -> None:
    order = two_ranks()
    swapped = {Action(1, SOFTMAX, 1): Action(1, HEAD, 1), Action(1, HEAD, 1): Action(1, SOFTMAX, 1)}
    row = tuple(swapped.get(action, action) for action in order.actions[0])
    edited = Order(order.placement, (row, order.actions[1]), order.microbatches, order.collectives)
    with pytest.raises(ShunterError, match="rank 0 1T1 comes without the softmax that it needs"):
        check(assemble(edited))


def test_what_cannot_be_is_refused() -> None:
    order = schedule("1f1b").build(2, 4)
    with pytest.raises(ShunterError, match="no algorithm 3"):
        parallel_vocabulary(order, 3)
    with pytest.raises(ShunterError, match="already"):
        parallel_vocabulary(parallel_vocabulary(order, 1), 2)
    with pytest.raises(ShunterError, match="run as one"):
        parallel_vocabulary(schedule("dualpipev").build(2, 8), 2)
