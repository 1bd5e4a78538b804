"""Bytes of experts' exchanges, counted from groups, against counting by hand; the classical limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.folding import Link, Sent, exchanged, layer_exchange, modelled_seconds, unfolded_experts
from shunter.layout.grid import Grid

NODE = 8


def test_context_and_experts_by_eight_fit_a_node_only_when_folded() -> None:
    folded = Grid(cp=8, ep=8)
    assert folded.size == 8
    with pytest.raises(ShunterError, match="ep 8 does not divide the 1 data ranks") as caught:
        unfolded_experts(folded, 0)
    assert caught.value.mend == "Use 8 data ranks, or fold the experts."
    unfolded = Grid(dp=8, cp=8, ep=8)
    assert unfolded.size == 64
    for rank in range(8):
        sent = layer_exchange(rank, folded.peers(("ep",), rank), 16, 2, 4, NODE)
        assert sent == Sent(4 * 16 * 2 * 4 * 7 / 8, 0)
    for rank in range(64):
        peers = unfolded_experts(unfolded, rank)
        assert peers == tuple(range(rank % 8, 64, 8))
        assert layer_exchange(rank, peers, 16, 2, 4, NODE) == Sent(0, 4 * 16 * 2 * 4 * 7 / 8)


@given(st.data())
def test_folded_never_sends_more_between_nodes(data: st.DataObject) -> None:
    ep = data.draw(st.sampled_from([1, 2, 4, 8]))
    degrees = {axis: data.draw(st.sampled_from([1, 2, 4])) for axis in ("cp", "tp")}
    grid = Grid(dp=ep * data.draw(st.sampled_from([1, 2])), ep=ep, **degrees)
    found = {}
    for name in ("folded", "unfolded"):
        total = Sent()
        groups = set()
        for rank in range(grid.size):
            peers = grid.peers(("ep",), rank) if name == "folded" else unfolded_experts(grid, rank)
            assert rank in peers
            assert len(peers) == ep
            groups.add(peers)
            sent = exchanged(rank, peers, ep * 10.0, NODE)
            total = Sent(total.inside + sent.inside, total.between + sent.between)
        assert sorted(rank for group in groups for rank in group) == list(range(grid.size))
        assert total.inside + total.between == grid.size * (ep - 1) * 10
        found[name] = total
    assert found["folded"].between == 0 <= found["unfolded"].between


def test_modelled_seconds_are_the_slower_links() -> None:
    fast, slow = Link(1.0, 0.1), Link(2.0, 1.0)
    assert modelled_seconds(Sent(70, 0), fast, slow, 8) == pytest.approx(7 * 1 + 7)
    assert modelled_seconds(Sent(70, 10), fast, slow, 8) == pytest.approx(7 * 2 + 10)
    assert modelled_seconds(Sent(), fast, slow, 1) == 0
