"""Ranks that wait for one that works alone: for as long as it lives, and no longer.

The clock is one of our own, and the ranks are two objects with one store. What this cannot show: a store on
another machine that is slow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from shunter.launch import waited
from shunter.parallel import heartbeat
from shunter.parallel.heartbeat import DONE, FAILED, LONGEST, WALK, Heartbeat
from shunter.parallel.lost import PeerLost

SILENT = 10.0  # seconds


class Clock:
    """In the place of `time`: each sleep takes as long as it may, and what happens meanwhile is told."""

    def __init__(self, happens: Callable[[float], None]) -> None:
        self.now, self.happens = 0.0, happens

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += LONGEST
        self.happens(self.now)


@pytest.fixture
def ranks() -> tuple[Heartbeat, Heartbeat]:
    """Rank 0 is in its first round; what it says is up to the test."""
    store = dist.HashStore()
    first, second = (Heartbeat(store, rank, (0, 1), SILENT) for rank in (0, 1))
    first._round = 1
    return first, second


def waits(second: Heartbeat, monkeypatch: pytest.MonkeyPatch, happens: Callable[[float], None]) -> float:
    """The seconds after which rank 1, which has nothing to do, goes on."""
    clock = Clock(happens)
    with monkeypatch.context() as patch:
        patch.setattr(heartbeat, "time", clock)
        with second.alone("hear what answers are worth"):
            pass
    return clock.now


def test_who_beats_is_waited_for_a_hundred_times_as_long_as_one_that_is_silent(
    ranks: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ranks

    def happens(now: float) -> None:
        first._say(DONE if now >= 100 * SILENT else str(now // 3))

    assert waits(second, monkeypatch, happens) == 100 * SILENT


@pytest.mark.parametrize("until", [0.0, 50.0])
def test_who_beats_no_more_is_given_up_within_the_bound(
    ranks: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch, until: float
) -> None:
    """It died or was stopped, before it came here or later."""
    first, second = ranks
    seen = []

    def happens(now: float) -> None:
        seen.append(now)
        if now <= until:
            first._say(str(now))

    with pytest.raises(PeerLost, match=r"rank 0 does not answer \(timed out") as caught:
        waits(second, monkeypatch, happens)
    assert until + SILENT < seen[-1] <= until + SILENT + LONGEST
    assert waited.late(caught.value)
    assert waited.what(caught.value) == "for rank 0, to hear what answers are worth"


def test_one_that_fails_is_not_waited_for(
    ranks: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ranks
    with pytest.raises(PeerLost, match="it has failed"):
        waits(second, monkeypatch, lambda now: first._say(FAILED))


def test_one_that_is_a_round_ahead_is_done_and_one_behind_is_not(
    ranks: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ranks
    first._say(DONE)
    assert waits(second, monkeypatch, lambda now: None) == 0.0

    def happens(now: float) -> None:
        first._round = 3 if now > 5 else 1
        first._say("0" if now > 5 else DONE)

    assert 5.0 < waits(second, monkeypatch, happens) <= 5.0 + WALK * SILENT


def test_a_rank_beats_while_it_works_and_says_how_it_ended(ranks: tuple[Heartbeat, Heartbeat]) -> None:
    first, second = ranks
    first._round, first.silent = 0, 0.1
    second._say(DONE)
    second._round = 1
    heard = set()

    def work() -> None:
        while len(heard) < 4:  # ends only if it beats
            heard.add(second._heard(0))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), first.alone("tell its answers"):
        work()
    assert heard <= {str(number) for number in range(1000)}
    assert second._heard(0) == FAILED
    second._round = 2
    second._say(DONE)
    with first.alone("tell its answers"):
        pass
    assert second._heard(0) == DONE
    assert not [each for each in threading.enumerate() if each.name == "heartbeat"]


class Counted:
    """A store, and how often it was called."""

    def __init__(self, store: Any) -> None:
        self.store, self.calls = store, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self.store, name)


def test_a_look_is_one_call_for_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    size, looks = 64, []
    store = dist.HashStore()
    group = [Heartbeat(store, rank, range(size), SILENT) for rank in range(size)]
    for other in group[1:]:
        other._round = 1
        other._say("0")
    counted = Counted(group[0]._store)
    monkeypatch.setattr(group[0], "_store", counted)

    def happens(now: float) -> None:
        looks.append(now)
        for other in group[1:]:
            other._say(DONE if now >= SILENT / 2 else str(now))

    waits(group[0], monkeypatch, happens)
    walks = SILENT / 2 / (WALK * SILENT)
    assert counted.calls <= len(looks) + 2 * size * walks + 8


def test_a_beat_that_does_not_arrive_is_followed_by_others(
    ranks: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = ranks
    first.silent = 0.01
    ended, said = threading.Event(), []

    def say(what: str) -> None:
        said.append(what)
        if len(said) == 3:
            ended.set()
        raise dist.DistNetworkError("Connection reset by peer")

    monkeypatch.setattr(first, "_say", say)
    beats = threading.Thread(target=first._beat, args=(ended,), daemon=True)
    beats.start()
    beats.join(10)
    assert said == ["1", "2", "3"]


def test_without_a_store_that_answers_the_rank_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*given: object) -> None:
        raise dist.DistNetworkError("Connection reset by peer")

    one = Heartbeat(dist.HashStore(), 1, (0, 1), SILENT)
    monkeypatch.setattr(one, "_store", SimpleNamespace(set=gone, check=gone, get=gone, add=gone))
    with pytest.raises(PeerLost, match="rank 1 cannot tell its answers"), one.alone("tell its answers"):
        pass
