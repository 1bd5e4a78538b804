"""The learner's end of a process that writes: what comes from it, and what is said when nothing does.

Small programs stand in its place, which speak as it does; that it writes what it should is shown in
tests/jobs/test_beside_rl.py.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout
from shunter.post import beside
from shunter.post.cores import Cores
from shunter.post.parcel import Parcel
from shunter.post.writing import Writing

SPEAKS = """
import socket, sys, time
from shunter.post.roles import wire
link = socket.socket(fileno=int(sys.argv[1]))
assert wire.receive(link)[0]["seed"] == 7
asked, _ = wire.receive(link)
for _ in range(4):
    time.sleep(0.3)
    wire.send(link, {"alive": True})
one = {"ids": [1], "logprobs": [-0.5], "stop_reason": "stop", "versions": [3], "wrote": [True]}
rows = [[at, {**one, "prompt": ids}] for at, ids in asked["prompts"]]
wire.send(link, {"answers": [[asked["step"], rows]], "tools": [0, 0]})
wire.receive(link)  # else both may be heard at once
wire.send(link, {"failed": -1, "user": True, "what": "no room", "where": None, "mend": None, "traceback": ""})
time.sleep(60)
"""


@contextmanager
def writer(
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    heard: dict[tuple[int, int], Rollout],
    timeout: float,
    cores: Cores | None = None,
) -> Iterator[beside.Beside]:
    monkeypatch.setattr(beside, "COMMAND", (sys.executable, "-c", code))

    def hear(step: int, fresh: Mapping[int, Rollout]) -> None:
        heard.update({(step, at): one for at, one in fresh.items()})

    found = beside.Beside(
        Path("model"), Path("journal"), SamplingConfig(), hear, seed=7, stops=[1], room=8, threads=1,
        exact=False, timeout=timeout, cores=cores, place=1,
    )  # fmt: skip
    try:
        yield found
    finally:
        found.close()
        with pytest.raises(ProcessLookupError):
            os.kill(found._process.pid, 0)


def test_what_it_writes_is_heard_and_a_long_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[tuple[int, int], Rollout] = {}
    with writer(monkeypatch, SPEAKS, heard, 20.0) as there:
        there.ask(5, {2: [4, 4], 0: [6]}, {})
        there.listen(wait=False)
        assert heard == {}
        while there.said.empty():  # it begins, which takes as long as it takes
            time.sleep(0.01)
        there.timeout = 1.0  # less than all four signs of life take
        there.listen(wait=True)
        assert {key: one.prompt for key, one in heard.items()} == {(5, 2): [4, 4], (5, 0): [6]}
        assert heard[5, 2].versions == [3]
        there.timeout = 20.0
        there.ask(6, {0: [6]}, {})
        with pytest.raises(ShunterError, match="no room"):
            there.listen(wait=True)


def test_its_cores_are_the_learners_while_it_owes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment in which it is asked, whenever it hears of that, until all has come."""
    cores = Cores.shared(2, 2)
    with writer(monkeypatch, SPEAKS, {}, 20.0, cores) as there:
        assert cores.of(0) == 2
        there.ask(5, {2: [4, 4], 0: [6]}, {})
        assert cores.of(0) == 1
        there.listen(wait=True)
        assert cores.of(0) == 2


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import sys; print('no memory'); sys.exit(3)", "ended with exit code 3; it said last: no memory"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("import time; time.sleep(60)", "no word from the process that writes for 0.5 s"),
    ],
)
def test_one_that_dies_or_is_silent_is_told(
    monkeypatch: pytest.MonkeyPatch, code: str, complaint: str
) -> None:
    timeout = 0.5 if "sleep" in code else 20.0
    with writer(monkeypatch, code, {}, timeout) as there:
        there.ask(0, {0: [1]}, {})
        with pytest.raises(ShunterError, match=complaint):
            there.listen(wait=True)


HUGE = """
import socket, struct, sys, time
link = socket.socket(fileno=int(sys.argv[1]))
link.sendall(struct.pack(">QQ", 2, 1 << 62) + b"{}")
time.sleep(60)
"""


def test_a_thread_that_fails_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not as silence: of this end, what cannot be sent or held, and of the other end."""
    with writer(monkeypatch, "import time; time.sleep(60)", {}, 20.0) as there:
        there.ask(0, {0: [object()]}, {})  # type: ignore[list-item]
        with pytest.raises(ShunterError, match="the type object cannot be sent"):
            there.listen(wait=True)
    with writer(monkeypatch, HUGE, {}, 20.0) as there:
        there.ask(0, {0: [1]}, {})
        with pytest.raises((MemoryError, OverflowError)):
            there.listen(wait=True)
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.sendall(struct.pack(">QQ", 2, 1 << 62) + b"{}")
        other = Writing.__new__(Writing)
        other.link, other.told = theirs, queue.SimpleQueue()
        other._listen()
        with pytest.raises((MemoryError, OverflowError)):
            other._heed(other.told.get(timeout=20.0))


class Slow(beside.Beside):
    """Owes what it is asked for until it is told to hear some of it."""

    def __init__(self) -> None:
        self.owes, self.asked, self.versions = 0, list[tuple[int, list[int]]](), list[int]()
        self.said = queue.SimpleQueue()

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]], begun: Mapping[int, Rollout]) -> None:
        self.owes += len(prompts)
        self.asked.append((step, list(prompts)))

    def hand(self, version: int, parcel: Parcel) -> None:
        self.versions.append(version)


def test_of_several_the_slower_one_is_asked_for_less_and_no_group_is_on_two() -> None:
    fast, slow = Slow(), Slow()
    both = beside.Several([fast, slow], 3)
    both.renew(1, {})
    for step in range(6):
        both.ask(step, {at: [7] for at in range(12)}, {})
        fast.owes, slow.owes = 0, max(0, slow.owes - 3)
    assert fast.versions == slow.versions == [1]
    rows = [(step, at) for each in (fast, slow) for step, ats in each.asked for at in ats]
    assert sorted(rows) == [(step, at) for step in range(6) for at in range(12)]
    for each in (fast, slow):
        for _, ats in each.asked:
            assert all(len([at for at in ats if at // 3 == group]) in (0, 3) for group in range(4))
    count = {each: sum(len(ats) for _, ats in each.asked) for each in (fast, slow)}
    assert count[fast] > 1.5 * count[slow] > 0
