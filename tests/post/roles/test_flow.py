"""The controller and its workers, as real processes: who moves what, who waits, and what a failure leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shunter.config.errors import ShunterError
from shunter.post.roles import protocol
from shunter.post.roles.flow import Flow, Group
from shunter.post.roles.role import Role
from shunter.post.roles.rows import Rows
from shunter.post.roles.source import Share, joined

STAND = "tests.post.roles.stands:Stand"

protocol.register(
    "reversed",
    protocol.Protocol(
        # The last rank gets the first rows, and answers first.
        lambda layout, value: [
            Share(value, layout.size - 1 - rank, layout.size) for rank in range(layout.size)
        ],
        lambda layout, parts: joined([part for part in parts if part is not None]),
    ),
)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    with Flow({"pair": 2, "one": 1}, tmp_path_factory.mktemp("roles"), timeout=60) as made:
        made.cast("two", STAND, "pair")
        made.cast("also", STAND, "pair")
        made.cast("one", STAND, "one")
        made.wait()
        yield made


def group(flow: Flow, name: str) -> Group:
    return flow.groups[name]


def test_calls_return_at_once_and_payload_goes_from_worker_to_worker(flow: Flow) -> None:
    before, moved = flow.count.control, flow.moved
    fetched = flow.count.fetched
    made = group(flow, "one").make(count=40, size=5000)
    passed = group(flow, "two").pass_on(made)
    back = group(flow, "one").pass_on(passed)
    assert not back.done()
    assert back.told() == {"rows": 40.0}
    payload = 40 * 5000 * 8
    assert flow.moved - moved >= 2 * payload  # there, by halves, and back
    assert flow.count.control - before < 5000
    assert flow.count.fetched == fetched
    assert [float(x[0]) for x in back.fetch()["x"]] == [row + 2.0 for row in range(40)]
    assert flow.count.fetched - fetched >= payload  # that was asked for, and is counted


def test_protocols_on_processes(flow: Flow) -> None:
    made = group(flow, "one").make(count=5)
    found = group(flow, "two").mine(made).fetch()
    assert [x.tolist() for x in found["x"]] == [[0, 0], [1, 0], [2, 0], [3, 1], [4, 1]]
    assert group(flow, "two").seen(made, more=0.5).fetch() == [[0.5, 1.5, 2.5, 3.5, 4.5]] * 2
    assert group(flow, "two").own(["a", {"b": 1}]).fetch() == [[0, "a"], [1, {"b": 1}]]
    # Runs of 3 are not parted: the second rank has one, the first two.
    runs = group(flow, "one").make(count=9, unit=3)
    assert [int(x[1]) for x in group(flow, "two").mine(runs).fetch()["x"]] == [0] * 6 + [1] * 3


def test_a_protocol_of_ones_own(flow: Flow) -> None:
    made = group(flow, "one").make(count=4)
    assert [float(x[0]) for x in group(flow, "two").backwards(made).fetch()["x"]] == [3, 2, 1, 0]


def test_pools_work_side_by_side_and_roles_on_one_take_turns(flow: Flow) -> None:
    made = group(flow, "one").make(count=2).wait()
    begin = len(flow.spans)
    calls = [group(flow, name).sleep(made, seconds=0.3) for name in ("two", "also", "one", "two")]
    for call in calls:
        call.wait()
    spans = [span for span in flow.spans[begin:] if span.call.endswith("sleep")]
    assert len(spans) == 7
    for span in spans:
        for other in spans:
            if span is not other and span.worker == other.worker:
                assert span.end <= other.begin or other.end <= span.begin
    (alone,) = (span for span in spans if span.pool == "one")
    assert any(span.begin < alone.end and alone.begin < span.end for span in spans if span.pool == "pair")


def test_mistakes_are_said_before_anything_is_sent(flow: Flow) -> None:
    with pytest.raises(ShunterError, match=r"no operation 'pas_on'.*pass_on"):
        _ = group(flow, "two").pas_on
    with pytest.raises(ShunterError, match=r"no role of the kind 'acter'. Did you mean actor"):
        flow.cast("x", "acter", "one")
    with pytest.raises(ShunterError, match="no pool 'three'"):
        flow.cast("x", STAND, "three")
    with pytest.raises(ShunterError, match="is no role"):
        flow.cast("x", "json:JSONDecoder", "one")
    with pytest.raises(ShunterError, match="cannot be shared out"):
        group(flow, "two").pass_on(3)


def test_inline_gives_the_same_and_frees_what_nobody_can_ask_for(tmp_path: Path) -> None:
    with Flow({"here": 1, "there": 1}, tmp_path, backend="inline") as flow:
        one, two = flow.cast("one", STAND, "here"), flow.cast("two", STAND, "there")
        made = one.make(count=5)
        assert two.seen(made).fetch() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
        for _ in range(20):
            made = two.pass_on(made)
        two.make(count=1).wait()
        assert sum(len(host.shelf) for host in flow.backend._hosts.values()) < 4  # type: ignore[attr-defined]
        assert float(made.fetch()["x"][0][0]) == 20.0
        roles = [role for host in flow.backend._hosts.values() for role in host.roles.values()]  # type: ignore[attr-defined]
        closed: list[Role] = []
        for role in roles:
            role.close = lambda role=role: closed.append(role)
    assert closed == roles, "what they hold, such as a sandbox, does not outlive them"
    with pytest.raises(ShunterError, match="has no other process to be in"):
        Flow({"here": 2}, tmp_path, backend="inline")
    with pytest.raises(ShunterError, match=r"no backend 'thread'. Use processes, ray or inline"):
        Flow({"here": 1}, tmp_path, backend="thread")


def running(flow: Flow) -> list[int]:
    return [process.pid for process in flow.backend._processes.values()]  # type: ignore[attr-defined]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_worker_that_dies_is_named_at_once(tmp_path: Path) -> None:
    """Also where another one waits for it in a collective, and says so first."""
    with Flow({"pair": 2}, tmp_path, timeout=60) as flow:
        stand = flow.cast("fish", STAND, "pair")
        flow.wait()
        pids, begin = running(flow), time.monotonic()
        stand.fail(how="die")
        later = stand.make(count=1)
        with pytest.raises(ShunterError, match=r"rank 0 of the pool pair was ended by SIGKILL in fish\.fail"):
            later.fetch()
        assert time.monotonic() - begin < 10
        assert all(map(gone, pids))


def test_a_role_that_refuses_says_its_own_sentence(tmp_path: Path, cold: None) -> None:
    with Flow({"one": 1}, tmp_path, timeout=60) as flow:
        stand = flow.cast("fish", STAND, "one")
        with pytest.raises(ShunterError, match=r"fish\.fail: the fish is not fresh. Buy another"):
            stand.fail(how="user").wait()


def test_a_worker_that_is_silent_is_given_up(tmp_path: Path) -> None:
    with Flow({"one": 1}, tmp_path, timeout=60) as flow:
        stand = flow.cast("fish", STAND, "one")
        flow.wait()  # to begin takes longer than this test's patience
        flow.backend._timeout = 1.5  # type: ignore[attr-defined]
        pids = running(flow)
        with pytest.raises(ShunterError, match=r"no word from rank 0 of the pool one in fish.fail for 1.5 s"):
            stand.fail(how="silent").wait()
        assert all(map(gone, pids))


def test_rows_of_unequal_columns_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="columns of"):
        Rows({"a": [np.zeros(1)], "b": []})
