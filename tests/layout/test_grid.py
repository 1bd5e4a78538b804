"""Groups of any legal grid: they part the ranks, agree on pipelines, and fold experts over all other axes.

What this cannot show: that ranks talk to the right ones; the property test of layouts does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.grid import DENSE, EXPERT, Grid

AXES = (*DENSE, "ep", "etp")


@st.composite
def degrees(draw: st.DrawFn) -> dict[str, int]:
    """Of any grid, legal or not, in which every degree is small."""
    return {axis: draw(st.integers(1, 4)) for axis in AXES}


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    dense = {axis: draw(st.sampled_from([1, 1, 2, 3, 4])) for axis in DENSE}
    inner = prod(dense.values()) // dense["pp"]
    ep = draw(st.sampled_from([n for n in range(1, inner + 1) if inner % n == 0]))
    rest = inner // ep
    etp = draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
    return Grid(**dense, ep=ep, etp=etp)


def groups(grid: Grid, axes: Sequence[str]) -> set[tuple[int, ...]]:
    return {grid.peers(axes, rank) for rank in range(grid.size)}


@given(grids())
def test_groups_part_the_ranks_and_differ_along_their_axes_alone(grid: Grid) -> None:
    for family in (DENSE, EXPERT):
        assert prod(grid.degree(axis) for axis in family) == grid.size
        for count in range(1, len(family) + 1):
            for axes in combinations(family, count):
                found = groups(grid, axes)
                assert sorted(rank for group in found for rank in group) == list(range(grid.size))
                assert {len(group) for group in found} == {prod(grid.degree(axis) for axis in axes)}
                group = grid.peers(axes, grid.size - 1)
                for axis in set(family) - set(axes):
                    assert len({grid.coordinates(rank)[axis] for rank in group}) == 1


@given(grids())
def test_both_grids_have_the_same_pipelines_and_the_card_s_ranks(grid: Grid) -> None:
    folded: dict[tuple[int, ...], set[int]] = {}
    for rank in range(grid.size):
        place = grid.coordinates(rank)
        ep, etp, edp, pp = (place[axis] for axis in ("ep", "etp", "edp", "pp"))
        assert rank == etp + grid.etp * (ep + grid.ep * (edp + grid.edp * pp))
        assert rank == grid.rank(**{axis: place[axis] for axis in DENSE})
        folded.setdefault((edp, ep, etp), set()).add(rank)
    assert {tuple(sorted(group)) for group in folded.values()} == groups(grid, ["pp"])


@pytest.mark.parametrize(
    ("given_", "size"),
    [
        ({"tp": 2, "ep": 8, "pp": 8, "dp": 8}, 128),  # the paper's Mixtral-8x22B, whose listing fails on it
        ({"tp": 4, "cp": 2, "dp": 8, "ep": 64}, 64),  # more experts' ranks than copies of the model
        ({"cp": 8, "ep": 8}, 8),  # 64 ranks, were they not folded
        ({"tp": 2, "cp": 2, "dp": 2, "ep": 8}, 8),
        ({"tp": 3, "cp": 2, "ep": 3, "etp": 2}, 6),
    ],
    ids=str,
)
def test_the_card_s_examples(given_: dict[str, int], size: int) -> None:
    grid = Grid(**given_)
    assert grid.size == size
    assert {len(group) for group in groups(grid, ["ep"])} == {given_["ep"]}
    assert groups(grid, ["pp"]) == {
        tuple(range(first, size, size // grid.pp)) for first in range(size // grid.pp)
    }


@given(degrees())
def test_what_cannot_be_names_the_rule_and_a_mend_that_is_legal(chosen: dict[str, int]) -> None:
    inner = prod(chosen[axis] for axis in DENSE[1:])
    if inner % (chosen["ep"] * chosen["etp"]) == 0:
        Grid(**chosen)
        return
    with pytest.raises(ShunterError) as caught:
        Grid(**chosen)
    assert f"does not divide the {inner} ranks of a stage" in str(caught.value)
    assert caught.value.mend is not None
    mended = {axis: int(degree) for axis, degree in re.findall(r"(\w+)=(\d+)", caught.value.mend)}
    Grid(**{**chosen, **mended})


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_has_at_least_one_rank(axis: str) -> None:
    with pytest.raises(ShunterError, match=f"{axis} is 0, but an axis has at least 1 rank"):
        Grid(**{axis: 0})
