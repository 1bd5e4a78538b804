"""Who keeps the optimizer's state: each value of it on one of the copies, and evenly."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.layout.grid import Grid
from shunter.layout.zero import holdings, in_buckets, share_out
from shunter.models.sharding import holdings as declared
from shunter.models.spec import DecoderSpec
from shunter.train.layout_parts import muon_takes

EXPERTS = {"num_experts": 4, "per_token": 2, "ffn_dim": 6}
GRIDS = [
    Grid(dp=2), Grid(dp=3), Grid(dp=2, tp=2), Grid(cp=2, dp=3), Grid(dp=2, cp=2, ep=2),
    Grid(dp=4, tp=2, ep=2, etp=2), Grid(cp=2, tp=2, etp=2), Grid(tp=4), Grid(pp=2, dp=2),
]  # fmt: skip


def spec(experts: bool) -> DecoderSpec:
    return DecoderSpec(
        dim=10, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=13, vocab_size=29,
        max_positions=64, qk_norm=True, experts=EXPERTS if experts else None,
    )  # fmt: skip


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_value_has_its_state_on_one_of_its_copies(grid: Grid, muon: bool) -> None:
    model = spec(experts=grid.ep * grid.etp > 1)
    whole = muon_takes if muon else lambda name, shape: False
    seen: dict[str, Counter[tuple[int, ...]]] = {}
    owners: dict[tuple[str, tuple[int, ...]], set[int | None]] = {}
    for rank in range(grid.size // grid.pp):  # of one stage: the others have other layers
        held = declared(model, grid, grid.coordinates(rank))
        kept = share_out(held, grid, rank, whole)
        for name, each in kept.items():
            owners.setdefault((name, grid.peers(each.axes, rank)), set()).add(each.owner)
        for name, holding in holdings(held, kept).items():
            assert name not in kept or not {*holding.partial} & {*kept[name].axes}
            for box in holding.piece.boxes():
                cells = seen.setdefault(name, Counter())
                cells[(*box.whole, *box.size)] += 1 / _alike(holding, grid)
    assert all(len(found) == 1 for found in owners.values())
    for name, holding in declared(model, grid, grid.coordinates(0)).items():
        # Heads of keys and values that some tensor ranks hold alike are counted by each of them.
        values = sum(count * prod(cell[len(cell) // 2 :]) for cell, count in seen[name].items())
        if "qkv" not in name or grid.tp <= model.num_kv_heads:
            assert values == pytest.approx(prod(holding.piece.shape)), name


def _alike(holding: object, grid: Grid) -> int:
    return holding.copies(grid)  # type: ignore[attr-defined, no-any-return]


@settings(max_examples=50)
@given(layers=st.integers(1, 7), copies=st.integers(2, 9), width=st.integers(3, 40))
def test_owners_are_given_as_much_as_the_largest_matrix_allows(layers: int, copies: int, width: int) -> None:
    model = spec(experts=False).model_copy(update={"num_layers": layers, "ffn_dim": width})
    grid, load = Grid(dp=copies), []
    for rank in range(copies):
        held = declared(model, grid, grid.coordinates(rank))
        kept = share_out(held, grid, rank, muon_takes)
        mine = [name for name, each in kept.items() if each.owner is not None and each.holding is not None]
        load.append(sum(prod(held[name].piece.shape) for name in mine))
    largest = max(prod(each.piece.shape) for name, each in held.items() if muon_takes(name, each.piece.shape))
    assert max(load) - min(load) <= largest


@given(sizes=st.lists(st.integers(0, 30), max_size=20), most=st.integers(1, 40))
def test_buckets_hold_all_in_order_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    named = [(str(number), size) for number, size in enumerate(sizes)]
    found = in_buckets(named, most)
    assert [name for names in found for name in names] == [name for name, _ in named]
    known = dict(named)
    assert all(len(names) == 1 or sum(known[name] for name in names) <= most for names in found)
