"""A step's time in shares: what is told of each rank adds up, and waiting is not what a message takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.record.split import Call, Rank, split


def test_who_comes_last_to_a_collective_waits_for_nobody() -> None:
    early = Rank(0.0, 10.0, (Call("collective", "all", 0, 2.0, 8.0),))
    late = Rank(0.0, 10.0, (Call("collective", "all", 0, 7.0, 8.0),))
    (one, other), timeline = split([early, late])
    assert (one.compute, one.communication, one.waiting) == (4.0, 1.0, 5.0)
    assert (other.compute, other.communication, other.waiting) == (9.0, 1.0, 0.0)
    told = [(s.rank, s.lane, s.begin, s.end) for s in timeline if s.rank == 0]
    assert [lane for _, lane, _, _ in told] == ["compute", "waiting", "communication", "compute"]
    assert [begin for _, _, begin, _ in told] == [0.0, 2.0, 7.0, 8.0]


def test_a_call_in_two_parts_is_one_call() -> None:
    """As a collective that was begun beside the computation, and waited for later."""
    parts = (Call("collective", "all", 0, 1.0, 1.5), Call("collective", "all", 0, 3.0, 5.0))
    other = (Call("collective", "all", 0, 4.0, 4.25),)
    (one, _), _ = split([Rank(0.0, 6.0, parts), Rank(0.0, 6.0, other)])
    assert (one.communication, one.waiting) == (0.25, 2.25)


def test_a_message_takes_from_when_it_is_sent() -> None:
    sender = Rank(0.0, 10.0, (Call("send", "up 0>1", 0, 6.0, 6.1),))
    there = Rank(0.0, 10.0, (Call("recv", "up 0>1", 0, 1.0, 7.0),))
    late = Rank(0.0, 10.0, (Call("recv", "up 0>1", 0, 6.5, 7.0),))
    shares, _ = split([sender, there])
    assert (shares[1].waiting, shares[1].communication) == (5.0, 1.0)
    assert shares[0].communication == pytest.approx(0.1)
    shares, _ = split([sender, late])
    assert (shares[1].waiting, shares[1].communication) == (0.0, 0.5)
    alone, _ = split([there])  # nobody tells when it was sent
    assert (alone[0].waiting, alone[0].communication) == (6.0, 0.0)


def test_rounding_lets_nothing_overlap() -> None:
    for begin, length in ((1.09, 2.21), (0.23, 1.7), (1.01, 3.95), (0.46, 1.12)):
        end = begin + length
        assert end - (end - begin) < begin
        calls = Call("collective", "g", 0, 0.0, begin), Call("collective", "g", 1, begin, end)
        _, timeline = split([Rank(0.0, 10.0, calls)])
        assert not timeline.overlaps()


KINDS = st.sampled_from(["collective", "send", "recv"])
CALLS = st.lists(st.tuples(KINDS, st.integers(0, 2), st.floats(0, 10), st.floats(0, 4)), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=4))
def test_shares_add_up_to_the_step(drawn: list[list[tuple[str, int, float, float]]]) -> None:
    ranks = [
        Rank(0.0, 10.0, tuple(Call(k, "g", n, begin, begin + length) for k, n, begin, length in calls))
        for calls in drawn
    ]
    shares, timeline = split(ranks)
    assert not timeline.overlaps()
    for number, each in enumerate(shares):
        assert each.compute + each.communication + each.waiting == pytest.approx(10.0)
        assert min(each.compute, each.communication, each.waiting) >= 0
        busy = sum(timeline.busy((number, lane)) for lane in ("compute", "communication", "waiting"))
        assert busy == pytest.approx(10.0)
