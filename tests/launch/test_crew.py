"""Processes that wait for what rank 0 says: jobs, failures, stops, ends; what machines tell of themselves.

This process is rank 0, and there are two more, as on two nodes. A job's ranks are real processes that need no
torch. Not shown: torchrun (tests/jobs/test_together.py), a network (tests/launch/test_network.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.launch import crew as crews
from shunter.launch import links, machines
from shunter.launch.channel import Channel
from shunter.launch.child import Child
from shunter.launch.crew import Crew, attend, leading
from shunter.launch.hands import Hands
from shunter.launch.place import Place
from tests import warm

AHEAD = 5.0  # seconds that the clock of the second node is ahead
SHORT = {"BEAT": 0.1, "SILENT": 4.0, "MUTE": 2.0, "GRACE": 0.3, "BUSY": 5.0}


def places() -> list[Place]:
    """One process on node 0, two on node 1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    spots = [(0, 1, 0), (0, 2, 1), (1, 2, 1)]
    return [
        Place(rank, 3, local, size, node, "127.0.0.1", port, False, f"n{node}")
        for rank, (local, size, node) in enumerate(spots)
    ]


def hasten() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    Child.prefix = "tests."
    vars(crews).update(SHORT)


def follow(place: Place, tamper: str) -> None:
    hasten()
    if tamper:
        globals()[tamper](place)
    sys.exit(attend(place))


def process_of(act: str, place: Place, *more: str) -> Any:
    """One that has torch loaded, and does what a function here does."""
    words = [act, json.dumps(dataclasses.asdict(place)), *more]
    return warm.popen([sys.executable, "-m", "tests.launch.test_crew", *words], cwd=warm.ROOT)


class Others:
    """The followers of a crew."""

    def __init__(self, places: list[Place], tamper: Callable[[Place], None] | None) -> None:
        name = "" if tamper is None else tamper.__name__
        self.processes = [process_of("follow", place, name) for place in places[1:]]

    def codes(self, timeout: float = 15.0) -> list[int | None]:
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        return [process.returncode for process in self.processes]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


Start = Callable[..., tuple[list[Place], Others]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(tamper=None): the followers run; the caller leads."""
    monkeypatch.setattr(Child, "prefix", "tests.")
    for name, value in SHORT.items():
        monkeypatch.setattr(crews, name, value)
    made: list[Others] = []

    def begin(tamper: Callable[[Place], None] | None = None) -> tuple[list[Place], Others]:
        spots = places()
        made.append(Others(spots, tamper))
        return spots, made[-1]

    yield begin
    for others in made:
        others.close()


def job(
    crew: Crew,
    folder: Path,
    count: int = 3,
    act: dict[str, str] | None = None,
    poll: Callable[[], None] = lambda: None,
    **more: Any,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    request = {"act": act or {}, **more}
    return crew.launch("tests.launch.small_rank", request, count, folder, threads=1, poll=poll)


def test_jobs_one_after_another_then_all_leave(start: Start, tmp_path: Path) -> None:
    spots, others = start()
    os.environ["RANK"] = "0"
    with leading(spots[0]) as crew:
        assert "RANK" not in os.environ, "a library that finds it would wait for others"
        assert crew.leaders == {0: 0, 1: 1}
        assert [crew.host(rank) for rank in range(3)] == ["n0", "n1", "n1"]
        for count in (3, 2, 3):
            answer = job(crew, tmp_path / "job", count)
            assert answer["size"] == count
        assert answer["seen"]["GLOO_SOCKET_IFNAME"] == "lo", "nothing listens beyond the machine"
        assert answer["seen"]["SHUNTER_MEETING"] == "job3", "each job meets for itself"
        assert answer["seen"]["MASTER_PORT"] == str(spots[0].port)
    assert others.codes() == [0, 0]


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        ({"2": "mistake", "1": "hang"}, ShunterError, r"rows: no such row\. Make it\."),
        ({"1": "bug", "0": "hang"}, RuntimeError, r"rank 1 failed:\n(.|\n)*ValueError: a bug"),
        ({"1": "kill", "2": "hang"}, ShunterError, "rank 1 was ended by SIGKILL"),
        ({"0": "kill", "2": "hang"}, ShunterError, "rank 0 was ended by SIGKILL"),
    ],
)
def test_a_rank_that_fails_ends_the_job_not_the_crew(
    start: Start, tmp_path: Path, act: dict[str, str], error: type[Exception], says: str
) -> None:
    spots, others = start()
    with leading(spots[0]) as crew:
        begin = time.monotonic()
        with pytest.raises(error, match=says):
            job(crew, tmp_path / "job", act=act)
        assert time.monotonic() - begin < 10
        assert job(crew, tmp_path / "job")["size"] == 3
    assert others.codes() == [0, 0]


def test_a_process_that_is_gone_is_named_and_takes_its_rank_with_it(start: Start, tmp_path: Path) -> None:
    """And what the rank has started, though no thread of it hears anything."""
    spots, others = start()
    file = tmp_path / "pid"

    def kill() -> None:
        if file.exists() and file.read_text() and others.processes[1].poll() is None:
            others.processes[1].kill()
            others.processes[1].wait()

    with pytest.raises(ShunterError, match="rank 2 on n1 is gone"), leading(spots[0]) as crew:
        job(crew, tmp_path / "job", act={"2": "brood", "0": "hang"}, pid=str(file), deaf=True, poll=kill)
    assert others.codes() == [2, -signal.SIGKILL]
    assert gone(file)


def test_what_a_rank_has_started_ends_with_it(start: Start, tmp_path: Path) -> None:
    """Though it was killed, and could end nothing."""
    spots, others = start()
    with leading(spots[0]) as crew, pytest.raises(ShunterError, match="rank 1 was ended by SIGKILL"):
        job(
            crew,
            tmp_path / "job",
            act={"1": "brood", "2": "hang"},
            pid=str(tmp_path / "pid"),
            dies=True,
        )
    assert others.codes() == [0, 0]
    assert gone(tmp_path / "pid")


def gone(file: Path) -> bool:
    """Whether all processes end whose numbers stand there."""
    until = time.monotonic() + 10
    processes = [int(each) for each in file.read_text().split()]
    while any(map(warm.lives, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(warm.lives, processes))


def lead(place: Place, ready: str) -> None:
    hasten()
    crew = Crew(place)
    Path(ready).touch()
    time.sleep(600)
    crew.end(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_rank_0_the_others_end(start: Start, number: int, tmp_path: Path) -> None:
    """Killed, its connections are closed; stopped, it is merely silent, as a machine without a network."""
    spots, others = start()
    ready = tmp_path / "ready"
    leader = process_of("lead", spots[0], str(ready))
    until = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(leader.pid, number)
    assert others.codes() == [1, 1]
    leader.kill()
    leader.wait()


def test_a_signal_that_another_process_hears_is_a_stop_of_the_run(start: Start) -> None:
    spots, others = start()
    with leading(spots[0]) as crew:
        assert crew.stop() is None
        others.processes[1].terminate()
        until = time.monotonic() + 10
        while crew.stop() is None and time.monotonic() < until:
            time.sleep(0.02)
        assert crew.stop() == signal.SIGTERM
        assert all(process.poll() is None for process in others.processes), "until rank 0 has saved"
    assert others.codes() == [0, 0]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ShunterError("no"), 2), (KeyboardInterrupt(), 130), (ValueError(), 1), (SystemExit(), 1)],
)
def test_all_end_as_rank_0_does(start: Start, error: BaseException, code: int) -> None:
    spots, others = start()
    with pytest.raises(type(error)), leading(spots[0]):
        raise error
    assert others.codes() == [code, code]


def stay_away(place: Place) -> None:
    if place.rank == 1:
        time.sleep(600)


def test_one_that_does_not_come_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still until the other one has come, however long a busy machine takes to start it."""
    came: list[str] = []
    get = Channel.get

    def heard(channel: Channel, key: str) -> Any:
        found = get(channel, key)
        came.extend([key] * (found is not None and key == "hello/2"))
        return found

    begin = time.monotonic()
    late = SimpleNamespace(
        monotonic=lambda: crews.JOIN + 1.0 if came or time.monotonic() > begin + 120 else 0.0,
        sleep=time.sleep,
    )
    spots, _ = start(stay_away)
    monkeypatch.setattr(Channel, "get", heard)
    monkeypatch.setattr(crews, "time", late)
    with pytest.raises(ShunterError, match="of 3 processes rank 1 did not come within 120 s"):
        Crew(spots[0])


def other_store(place: Place) -> None:
    if place.node == 1:
        Hands.see = lambda self, order: "is not there"  # type: ignore[method-assign]


def test_a_node_that_sees_another_store_is_named(start: Start, tmp_path: Path) -> None:
    spots, _ = start(other_store)
    with leading(spots[0]) as crew, pytest.raises(ShunterError, match=r"n1 does not see the store of n0"):
        machines.share(crew, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_node_sees_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shunter.launch.hands.LOOKS", 0.0)
    hands = Hands(places()[1])
    order = {"path": str(tmp_path / "token"), "text": "mine"}
    assert hands.see(order) == "is not there"
    (tmp_path / "token").write_text("another's")
    assert hands.see(order) == "is another file"
    (tmp_path / "token").write_text("mine")
    assert hands.see(order) is None


def early(place: Place) -> None:
    """Node 1 lives in the future, and has other code."""
    if place.node == 1:
        links.time = SimpleNamespace(  # type: ignore[assignment]
            time=lambda: time.time() + AHEAD, perf_counter=time.perf_counter
        )
        facts = Hands.facts
        Hands.facts = lambda self, order: {**facts(self, order), "digest": "other"}  # type: ignore[method-assign]


def test_machines_are_compared_and_links_measured_once(start: Start, tmp_path: Path) -> None:
    spots, others = start(early)
    with leading(spots[0]) as crew:
        machines.share(crew, tmp_path)
        found = machines.gather(crew, tmp_path, tmp_path, "cpu")
    assert others.codes() == [0, 0]
    assert [node["host"] for node in found.nodes] == ["n0", "n1"]
    assert [node["ranks"] for node in found.nodes] == [1, 2]
    assert found.nodes[1]["clock"] == pytest.approx(AHEAD, abs=0.2)
    assert [(link["from"], link["to"]) for link in found.links] == [("n0", "n1"), ("n1", "n0")]
    assert all(link["bandwidth"] > 1e6 and 0 < link["latency"] < 1 for link in found.links)
    told = [(problem.breaks, problem.text) for problem in found.problems if "link" not in problem.text]
    assert [breaks for breaks, _ in told] == [True, False]
    assert "n1 has code of shunter" in told[0][1]
    assert "the clock of n1 is 5.0 s ahead of n0's" in told[1][1]
    with pytest.raises(ShunterError, match="n1 has code of shunter"):
        found.refuse()


if __name__ == "__main__":
    act, place, more = sys.argv[1:]
    globals()[act](Place(**json.loads(place)), more)
