"""Placements as index ranges: every element is somewhere, once for each copy; sizes differ by at most one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.placement import (
    Broadcast,
    Partial,
    Split,
    check,
    dual,
    fits,
    held,
    local_shape,
    mergeable,
    parse,
    pieces,
    places,
    told,
)

PLACEMENT = st.sampled_from([Split(0), Split(1), Broadcast(), Partial()])


@given(st.integers(0, 40), st.integers(1, 9))
def test_parts_are_balanced_and_cover_all(length: int, parts: int) -> None:
    found = pieces(length, parts)
    sizes = [end - begin for begin, end in found]
    assert len(found) == parts
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert all(a[1] == b[0] for a, b in pairwise(found))


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(2,), (3,), (2, 2), (2, 3), (3, 2)]),
    st.data(),
)
def test_every_element_is_held_once_for_each_copy(
    shape: tuple[int, int], hierarchy: tuple[int, ...], data: st.DataObject
) -> None:
    placements = tuple(data.draw(PLACEMENT) for _ in hierarchy)
    seen: Counter[tuple[int, ...]] = Counter()
    for place in places(hierarchy):
        ranges = held(shape, placements, hierarchy, place)
        assert local_shape(shape, placements, hierarchy, place) == tuple(b - a for a, b in ranges)
        seen.update(product(*(range(*it) for it in ranges)))
    copies = prod(size for it, size in zip(placements, hierarchy, strict=True) if not isinstance(it, Split))
    assert set(seen.values()) == {copies}
    assert len(seen) == prod(shape)


def test_axes_are_applied_left_to_right() -> None:
    # 7 over 2 is 4 and 3; each of those over 2 again: not what 7 over 4 gives.
    parts = [held((7,), parse("S0,S0"), (2, 2), place) for place in places((2, 2))]
    assert parts == [((0, 2),), ((2, 4),), ((4, 6),), ((6, 7),)]
    assert [((a, b),) for a, b in pieces(7, 4)] == parts
    six = [held((6,), parse("S0,S0"), (2, 2), place)[0] for place in places((2, 2))]
    assert six == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert six != pieces(6, 4)


def test_when_two_axes_are_one() -> None:
    for length, a, b in product(range(1, 40), range(1, 5), range(1, 5)):
        flat = pieces(length, a * b)
        nested = [held((length,), parse("S0,S0"), (a, b), place)[0] for place in places((a, b))]
        assert (flat == nested) == mergeable(length, a, b), (length, a, b)


def test_text() -> None:
    for text in ("S0,B", "P", "Pmax,S12", "Pmin"):
        assert told(parse(text)) == text
    for wrong in ("", "S", "S-1", "Q", "Psum", "S0;B"):
        with pytest.raises(ShunterError, match="no placement"):
            parse(wrong)


def test_gradients_lie_in_the_dual_layout() -> None:
    assert told(dual(parse("S1,B,P"))) == "S1,P,B"
    assert dual(dual(parse("S1,B,P"))) == parse("S1,B,P")
    with pytest.raises(ShunterError, match="Pmax"):
        dual(parse("Pmax"))


def test_what_is_no_layout_of_a_tensor() -> None:
    with pytest.raises(ShunterError, match=r"weight .* has no dim 2"):
        check((3, 4), parse("S2"), (2,), "weight")
    with pytest.raises(ShunterError, match="2 x 2"):
        check((3, 4), parse("S0"), (2, 2))
    assert fits((3,), parse("S0"), (3,))
    assert not fits((3,), parse("S0"), (4,))
    assert not fits((7,), parse("S0,S0"), (2, 4))
