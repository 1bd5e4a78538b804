"""Recomputation in an order: where it stands, what it costs, what it frees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.schedule.action import FORWARD, RECOMPUTE, Action, counts
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.check import check
from shunter.schedule.costs import Costs, Links
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate
from shunter.schedule.text import read_program, write_program


def of(name: str, ranks: int, microbatches: int) -> Order:
    return recomputed(schedule(name).build(ranks, microbatches))


@given(
    st.sampled_from(
        ["gpipe", "gpipe-fifo", "1f1b", "interleaved-1f1b", "zb1p", "zbv", "v-half", "dualpipev"]
    ),
    st.integers(1, 5),
    st.integers(0, 5),
)
def test_sound_whatever_the_schedule(name: str, ranks: int, more: int) -> None:
    order = of(name, ranks, 2 * ranks + more)
    program = lower(assemble(order))
    check(program)
    for (op, _), count in counts(order.actions).items():
        assert op != RECOMPUTE or count <= order.microbatches
    text = write_program(program, order)
    assert write_program(read_program(text), order) == text


def test_what_goes_back_at_once_is_not_recomputed() -> None:
    found = counts(of("gpipe", 3, 5).actions)
    assert [found[RECOMPUTE, stage] for stage in range(3)] == [4, 4, 4]
    found = counts(of("1f1b", 3, 5).actions)
    assert (RECOMPUTE, 2) not in found
    assert " ".join(map(str, of("gpipe", 2, 2).actions[1])) == "1F0 1F1 1B1 1R0 1B0"


def test_it_runs_while_the_gradient_is_on_its_way() -> None:
    """K=4, F=1, R=1, B=2: the first ranks have recomputed by the time that the last gradient comes."""
    plain = simulate(assemble(schedule("gpipe").build(4, 8)), Costs.even((0, 1, 2, 3)))
    program = assemble(of("gpipe", 4, 8))
    found = simulate(program, Costs.even((0, 1, 2, 3)), Links())
    assert plain.elapsed == 3 * (8 + 3)
    # The last rank recomputes 7 of 8 on the critical path; the others' last recomputations hide.
    assert found.elapsed == plain.elapsed + 7
    begins = {str(node): found.begin[node.id] for node in program.nodes}
    assert begins["rank 0 0R0"] + 1 == begins["rank 0 0B0"] == begins["rank 3 3B0"] + 6


def test_what_is_held() -> None:
    found = simulate(assemble(of("gpipe", 2, 8), kept=0.05), Costs.even((0, 1)))
    # Eight inputs, and the rest of one micro-batch.
    assert found.peak_activations == [pytest.approx(8 * 0.05 + 0.95), pytest.approx(7 * 0.05 + 1)]
    assert simulate(assemble(schedule("gpipe").build(2, 8)), Costs.even((0, 1))).peak_activations == [8, 8]


def test_a_recomputation_out_of_place_is_refused() -> None:
    order = of("gpipe", 1, 2)
    late = Order(order.placement, (tuple(a for a in order.actions[0] if a.op != FORWARD),), 2)
    with pytest.raises(ShunterError, match="never does 0F0"):
        assemble(late)
    twice = Order(order.placement, ((*order.actions[0], Action(0, RECOMPUTE, 1)),), 2)
    with pytest.raises(ShunterError, match="0R1 comes after B"):
        check(assemble(twice))
