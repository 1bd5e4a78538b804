"""The byte table: the published formulas, and that counting range by range gives the same.

What this cannot show: that so many bytes are moved. tests/parallel/test_boxing.py counts them.
"""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.conversion import (
    moved_elements,
    published,
    route,
    steps,
    surcharge,
    table,
    unsupported,
)
from shunter.layout.placement import Broadcast, Partial, Placement, Split, parse, told
from shunter.layout.slices import Spread, slices

ONE = ("S0", "S1", "B", "P", "Pmax")


def one(text: str) -> Placement:
    return parse(text)[0]


@pytest.mark.parametrize(("source", "target"), list(product(ONE, repeat=2)))
def test_on_the_same_devices_counting_gives_the_table(source: str, target: str) -> None:
    if {source, target} == {"P", "Pmax"}:
        with pytest.raises(ShunterError, match="cannot become"):
            table(one(source), one(target), 1, 2)
        with pytest.raises(ShunterError, match="cannot become"):
            steps((8, 8), parse(source), parse(target), (4,))
        return
    for devices in (1, 2, 4, 8):
        shape = (8, 16)
        counted = moved_elements(shape, parse(source), parse(target), (devices,))
        assert counted == table(one(source), one(target), prod(shape), devices)


@pytest.mark.parametrize(("source", "target"), list(product(("S0", "S1", "B", "P"), repeat=2)))
def test_between_disjoint_devices_counting_gives_the_table(source: str, target: str) -> None:
    shape = (12, 24)
    for p1, p2 in product((1, 2, 3, 4), repeat=2):
        here = Spread(shape, tuple(range(p1)), (p1,), parse(source))
        there = Spread(shape, tuple(range(p1, p1 + p2)), (p2,), parse(target))
        assert route(here, there).elements == table(one(source), one(target), prod(shape), p1, p2)


@given(st.integers(1, 11), st.integers(1, 11), st.integers(1, 6))
def test_uneven_parts_are_counted_exactly(rows: int, columns: int, devices: int) -> None:
    shape, size = (rows, columns), rows * columns
    count = {
        (a, b): moved_elements(shape, parse(a), parse(b), (devices,))
        for a, b in product(("S0", "S1", "B", "P"), repeat=2)
    }
    assert count["S0", "B"] == count["P", "S0"] == count["P", "S1"] == (devices - 1) * size
    assert count["P", "B"] == 2 * (devices - 1) * size
    kept = sum(
        prod(b - a for a, b in it.ranges)
        for it in slices(
            Spread(shape, tuple(range(devices)), (devices,), parse("S0")),
            Spread(shape, tuple(range(devices)), (devices,), parse("S1")),
        )
        if it.sender == it.receiver
    )
    assert count["S0", "S1"] == size - kept
    assert count["B", "S0"] == count["S0", "P"] == count["B", "P"] == 0


def test_every_pair_on_two_axes_has_steps_that_end_where_they_should() -> None:
    some = [Split(0), Split(1), Broadcast(), Partial()]
    for source in product(some, repeat=2):
        for target in product(some, repeat=2):
            path = steps((6, 5), source, target, (2, 3))
            states = [source, *(step.after for step in path)]
            assert states[-1] == target
            assert [step.before for step in path] == states[:-1]
            if source == target:
                assert path == ()


def test_copies_along_another_axis_are_converted_too() -> None:
    # Each of three columns gathers the whole; the published rule counts one.
    assert moved_elements((6, 6), parse("S0,B"), parse("B,B"), (2, 3)) == 3 * 36
    assert published(parse("S0,B"), parse("B,B"), 36, (2, 3)) == 36
    # Cut along the other axis, the columns gather a third each: there the rule is exact.
    assert moved_elements((6, 6), parse("S0,S1"), parse("B,S1"), (2, 3)) == 36
    assert published(parse("S0,S1"), parse("B,S1"), 36, (2, 3)) == 36


def test_the_published_rule_adds_the_tensor_where_two_axes_cut_one_dim() -> None:
    assert published(parse("S0,S0"), parse("S0,B"), 10, (2, 4)) == 3 * 10 + 10
    assert published(parse("S0,S1"), parse("S0,B"), 10, (2, 4)) == 3 * 10
    assert published(parse("S0,S0"), parse("S0,S0"), 10, (2, 4)) == 0


def test_an_outer_axis_is_not_gathered_through_an_inner_cut() -> None:
    # (S0,S0): the two parts that an outer pair holds are not neighbours; ranges say what has to go where.
    (step,) = steps((8,), parse("S0,S0"), parse("B,S0"), (2, 2))
    assert step.kind == "slices"
    assert (
        step.elements == 12
    )  # each needs 4 of the 8: two of the four devices have 2 of those, two have none


def test_a_larger_all_reduce_goes_by_parts() -> None:
    path = steps((8, 8), parse("P,P"), parse("B,B"), (4, 2))
    assert sum(step.elements for step in path) == 2 * 7 * 64
    assert [step.kind for step in path] == ["reduce-scatter", "reduce-scatter", "slices"]


def test_different_reductions_end_from_the_inside() -> None:
    path = steps((4,), parse("P,Pmax"), parse("B,B"), (2, 2))
    reduced = [step.axis for step in path if step.kind in ("all-reduce", "reduce-scatter")]
    assert reduced == [1, 0]


def test_what_a_choice_adds() -> None:
    assert surcharge(parse("B"), parse("S0"), 100, (4,), "free") == 1
    assert surcharge(parse("S1"), parse("S0"), 100, (4,), "free") == 0
    assert surcharge(parse("B"), parse("P"), 100, (4,), "dear") == 4 * 100 * 8
    assert surcharge(parse("S0"), parse("P"), 100, (4,), "forbidden") == float("inf")
    assert surcharge(parse("P"), parse("P"), 100, (4,), "forbidden") == 0


def test_what_the_authors_code_refuses_is_named() -> None:
    assert "S0->P" in unsupported(one("S0"), one("P"))
    assert "P->P between different devices" in unsupported(one("P"), one("P"), disjoint=True)
    assert not unsupported(one("P"), one("B"))


def test_refusals() -> None:
    with pytest.raises(ShunterError, match="has no dim 3"):
        steps((4, 4), parse("S3"), parse("B"), (2,))
    with pytest.raises(ShunterError, match="cannot become"):
        route(Spread((4,), (0,), (1,), parse("B")), Spread((5,), (1,), (1,), parse("B")))
    with pytest.raises(ShunterError, match="add up otherwise"):
        route(Spread((4,), (0, 1), (2,), parse("P")), Spread((4,), (2, 3), (2,), parse("Pmax")))
    with pytest.raises(ShunterError, match="devices"):
        Spread((4,), (0, 0), (2,), parse("B"))
    assert told(parse("P")) == "P"
