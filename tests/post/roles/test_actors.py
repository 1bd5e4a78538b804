"""Roles on a Ray cluster: what processes give, to the bit; who dies is named; nothing passes the controller.

The nodes are two raylets of this machine, so a network between them is not shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shunter.config.errors import ShunterError
from shunter.launch.ray_cluster import Cluster
from shunter.post.roles.flow import Flow
from shunter.post.roles.overseer import Overseer
from shunter.post.roles.placement import Placement
from tests.launch.ray_nodes import nodes, until
from tests.post.roles.small import model_in, talks_in
from tests.post.roles.test_flow import STAND
from tests.post.roles.test_placements import POOLS, WHERE, inline, plays, run

GONE = 30.0  # seconds in which actors are gone


class _Dying(Overseer):
    """Two workers; the end of one is told after the other has missed it."""

    patience = 2.0

    def __init__(self) -> None:
        super().__init__(lambda worker, answer: None, lambda worker: f"call {worker}", 60.0)
        self._names = {0: "rank 0", 1: "rank 1"}
        self.told = time.monotonic() + 0.3

    def _killed(self) -> int | None:
        return 0 if time.monotonic() > self.told else None

    def _ended(self, worker: int) -> Exception:
        return ShunterError(f"{self._names[worker]} died {self._at(worker)}")

    def close(self) -> None:
        self._closing = True


def test_the_cause_of_a_failure_is_waited_for() -> None:
    overseer = _Dying()
    overseer.hear(1, {"failed": 1, "lost": True, "user": False, "traceback": "gloo"}, 0)
    begin = time.monotonic()
    with pytest.raises(ShunterError, match="rank 0 died in call 0"):
        overseer.wait(lambda: False, "nothing")
    assert time.monotonic() - begin < 1.5


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    with nodes(3, 2) as made:
        yield made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("placed")
    return model_in(folder), talks_in(folder / "talks" / "out")


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_four_placements_of_one_script_give_the_same_bits(
    two: Any, made: tuple[Path, Path], algorithm: str, tmp_path: Path
) -> None:
    """As inline and as on processes; what moves is as much, to the byte."""
    what, script, more = plays(made)[algorithm]
    expected = inline(tmp_path / "inline", what, script, **more)
    moved, fetched = [], []
    for backend in ("processes", "ray"):
        settings = {"backend": "ray", "address": two.address} if backend == "ray" else {}
        with Flow(POOLS, tmp_path / backend, timeout=100, exact=True, **settings) as flow:  # type: ignore[arg-type]
            for name in WHERE if backend == "ray" else ["standalone"]:
                before = flow.moved
                where = {role: WHERE[name].get(role, "a") for role in what.roles}
                assert run(flow, Placement(POOLS, where), what, script, f"{name} ", **more) == expected
                if name == "standalone":
                    moved.append(flow.moved - before)
            fetched.append(flow.count.fetched)
    assert moved[0] == moved[1] > 5000
    assert fetched[1] < 3 * fetched[0] + 1000  # three fingerprints, and no payload


@pytest.mark.long
def test_calls_return_at_once_and_payload_goes_from_worker_to_worker(two: Any, tmp_path: Path) -> None:
    with Flow({"pair": 2, "one": 1}, tmp_path, backend="ray", address=two.address, timeout=60) as flow:
        pair, one = flow.cast("two", STAND, "pair"), flow.cast("one", STAND, "one")
        flow.wait()
        before, moved = flow.count.control, flow.moved
        back = one.pass_on(pair.pass_on(one.make(count=40, size=5000)))
        assert not back.done()
        assert back.told() == {"rows": 40.0}
        payload = 40 * 5000 * 8
        assert flow.moved - moved >= 2 * payload  # there, by halves, and back
        assert flow.count.control - before < 5000
        assert flow.count.fetched == 0
        assert [float(x[0]) for x in back.fetch()["x"]] == [row + 2.0 for row in range(40)]
        assert flow.count.fetched >= payload
        # Roles on one pool take turns while what they made is handed out.
        made = one.make(count=2).wait()
        begin = len(flow.spans)
        for call in [each.sleep(made, seconds=0.3) for each in (pair, one, pair)]:
            call.wait()
        spans = [span for span in flow.spans[begin:] if span.call.endswith("sleep")]
        assert len(spans) == 5
        for span in spans:
            for other in spans:
                if span is not other and span.worker == other.worker:
                    assert span.end <= other.begin or other.end <= span.begin


def gone(pids: list[int]) -> bool:
    alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], GONE)[1]
    return not alive


def pids_of(flow: Flow) -> list[int]:
    return [told["pid"] for told in flow.backend._told_of.values()]  # type: ignore[attr-defined]


@pytest.mark.long
def test_an_actor_that_dies_is_named_in_time(two: Any, tmp_path: Path) -> None:
    with Flow({"pair": 2}, tmp_path, backend="ray", address=two.address, timeout=60) as flow:
        stand = flow.cast("fish", STAND, "pair")
        flow.wait()
        pids, begin = pids_of(flow), time.monotonic()
        stand.fail(how="die")
        later = stand.make(count=1)
        with pytest.raises(ShunterError, match=r"rank 0 of the pool pair \(process \d+ ") as caught:
            later.fetch()
        assert caught.value.what.endswith("died in fish.fail")
        assert time.monotonic() - begin < 15
        assert gone(pids)


@pytest.mark.long
def test_a_role_that_refuses_or_is_silent(two: Any, tmp_path: Path) -> None:
    with Flow({"one": 1}, tmp_path, backend="ray", address=two.address, timeout=60) as flow:
        stand = flow.cast("fish", STAND, "one")
        with pytest.raises(ShunterError, match=r"fish\.fail: the fish is not fresh. Buy another"):
            stand.fail(how="user").wait()
    with Flow({"one": 1}, tmp_path, backend="ray", address=two.address, timeout=60) as flow:
        stand = flow.cast("fish", STAND, "one")
        flow.wait()
        flow.backend._timeout = 1.5  # type: ignore[attr-defined]
        pids = pids_of(flow)
        with pytest.raises(ShunterError, match=r"no word from rank 0 of the pool one in fish.fail for 1.5 s"):
            stand.fail(how="silent").wait()
        assert gone(pids)


@pytest.mark.long
def test_a_node_that_is_lost_is_named(tmp_path: Path) -> None:
    with nodes(1, 1) as made:
        with Flow({"pair": 2}, tmp_path, backend="ray", address=made.address, timeout=120) as flow:
            stand = flow.cast("fish", STAND, "pair")
            flow.wait()
            begin = time.monotonic()
            call = stand.fail(how="silent")
            made.remove_node(min(made.worker_nodes, key=id), allow_graceful=False)
            with pytest.raises(ShunterError, match=r"in fish\.fail(, with its node|: its node, or the way)"):
                call.wait()
            assert time.monotonic() - begin < 60
        with Cluster(made.address) as cluster:
            until(lambda: len(cluster.nodes()) == 1, "the head does not know")
        with pytest.raises(ShunterError, match="the pools want 2 CPUs, and the Ray cluster has 1"):
            Flow({"pair": 2}, tmp_path, backend="ray", address=made.address)
