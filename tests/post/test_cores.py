"""Cores that processes share: who computes has those of who waits, and gives them back.

What this cannot show: that a product is faster for them, which `bench/asynchronous.py` measures.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.post.cores import Cores
from shunter.post.writing import Writing


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@given(st.integers(1, 64), st.integers(1, 6), st.data())
def test_who_computes_has_all_cores_and_nobody_has_none(cores: int, processes: int, data: Any) -> None:
    """Of those that compute the first has what is left over, and none is given twice."""
    shared = Cores.shared(cores, processes)
    assert shared is not None
    idle = {place for place in range(processes) if data.draw(st.booleans())}
    for place in range(1, processes):
        assert shared.waits(place), "a writer waits for what it is asked for"
    for place in range(processes):
        shared.set(place, waits=place in idle)
    busy = [place for place in range(processes) if place not in idle]
    found = [shared.of(place) for place in busy]
    assert all(each >= 1 for each in found)
    if found:
        assert sum(found) == max(cores, len(found))
        assert max(found) - min(found) <= max(cores % len(found), 0)
        assert found[0] == max(found)
    for place in idle:  # it goes on, whatever is noted
        assert 1 <= shared.of(place) <= cores


CHILD = """
import sys
from shunter.post.cores import Cores
mine = Cores(int(sys.argv[1]), 6, 3, 2)
for line in sys.stdin:
    print(mine.of(2), flush=True)
"""


def test_another_process_sees_it_at_once() -> None:
    shared = Cores.shared(6, 3)
    assert shared is not None
    command = [sys.executable, "-c", CHILD, str(shared.file)]
    with subprocess.Popen(
        command, pass_fds=[shared.file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None

        def asked() -> int:
            print(file=child.stdin, flush=True)
            assert child.stdout is not None
            return int(child.stdout.readline())

        assert asked() == 3, "the learner and itself"
        with shared.waiting():
            assert asked() == 6
            shared.set(1, waits=False)
            assert asked() == 3
        assert asked() == 2
        child.stdin.close()


def test_what_waits_lends_until_it_goes_on_even_if_that_fails() -> None:
    shared = Cores.shared(4, 2)
    assert shared is not None
    shared.set(1, waits=False)
    shared.take()
    assert torch.get_num_threads() == 2
    seen: list[int] = []

    def fail() -> None:
        with shared.waiting():
            seen.append(shared.of(1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [4]
    assert (shared.of(1), shared.waits(0)) == (2, False)
    shared.set(1, waits=True)
    shared.take()
    assert torch.get_num_threads() == 4


def test_a_writer_looks_before_each_token() -> None:
    """The loop of the process that writes, with an engine that notes how many threads it has."""
    shared = Cores.shared(4, 2)
    assert shared is not None
    shared.set(1, waits=False)
    had: list[int] = []

    def step() -> None:
        had.append(torch.get_num_threads())
        shared.set(0, waits=len(had) in (2, 3))

        writing.over = len(had) == 5

    writing = Writing.__new__(Writing)
    writing.cores = Cores(os.dup(shared.file), 4, 2, 1)
    writing.over, writing.ordered, writing.exact = False, True, True
    writing.spoke = writing.kept = time.monotonic()
    engine: Any = SimpleNamespace(busy=True, step=step, finished=[])
    writing.engine = engine
    writing.run()
    assert had == [2, 2, 4, 4, 2]


def test_where_no_memory_is_shared_each_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any, **named: Any) -> int:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert Cores.shared(4, 2) is not None  # a file without a name does as well
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert Cores.shared(4, 2) is None
