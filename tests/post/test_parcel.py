"""Arrays in one file that several processes map: the same values, written once, and nothing left open.

What this cannot show: another machine, which cannot have them.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from shunter.post import parcel
from shunter.post.parcel import Parcel
from shunter.post.roles import wire

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = st.dictionaries(
    st.text("ab.c", min_size=1, max_size=4),
    st.sampled_from(["float32", "int16", "int64", "bool", "float64"]).flatmap(
        lambda kind: drawn.arrays(kind, drawn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    ),
    max_size=4,
)
THERE = """
import socket, sys
from shunter.post import parcel
link = socket.socket(fileno=int(sys.argv[1]))
for _ in range(2):
    got = parcel.receive(link)
    print(got["version"], float(got["weights"]["a"].sum()), flush=True)
    got["weights"]["a"][:] = 0  # its own affair
"""


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=15, deadline=None)
@given(ARRAYS)
def test_what_is_sent_to_several_comes_to_each(arrays: dict[str, Any]) -> None:
    before = opened()
    pairs = [socket.socketpair() for _ in range(2)]
    made = Parcel(arrays)
    for mine, theirs in pairs:
        made.send(mine, {"do": "weights", "version": 3}, "weights")
        wire.send(mine, {"do": "ask"})
        got = parcel.receive(theirs)
        assert {key: got[key] for key in ("do", "version")} == {"do": "weights", "version": 3}
        assert got["weights"].keys() == arrays.keys()
        for name, array in arrays.items():
            assert got["weights"][name].dtype == array.dtype
            np.testing.assert_array_equal(got["weights"][name], array)
        assert parcel.receive(theirs) == {"do": "ask"}, "what follows is whole"
        del got
    for each in (end for pair in pairs for end in pair):
        each.close()
    del made
    assert opened() == before


class Refused:
    """A call that the system answers with this error."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *given: Any, **more: Any) -> Any:
        raise OSError(self.number, os.strerror(self.number))


def passed(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What comes, and the message as the wire has it, without what a file holds."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        made = Parcel(arrays)
        for _ in range(2):
            made.send(mine, {"version": 1}, "weights")
        frame = wire.receive(theirs)[0]
        if "parcel" in frame:
            for descriptor in socket.recv_fds(theirs, 1, 1)[1]:
                os.close(descriptor)
        return parcel.receive(theirs), frame


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_files_in_memory_are_refused_a_file_without_a_name_has_the_arrays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    monkeypatch.setattr(os, "memfd_create", Refused(number))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = opened()
    got, frame = passed({"a": np.arange(3.0), "none": np.zeros((0, 2)), "one": np.float32(2.0)[None]})
    assert got["version"] == 1
    np.testing.assert_array_equal(got["weights"]["a"], np.arange(3.0))
    assert got["weights"]["none"].shape == (0, 2)
    assert frame["parcel"] == "weights"
    assert not list(tmp_path.iterdir())
    del got
    assert opened() == before


@pytest.mark.parametrize("missing", [True, False], ids=["no such call", "refused"])
def test_where_there_is_no_file_at_all_arrays_go_in_the_message(
    monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    if missing:
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", Refused(errno.EPERM))
    monkeypatch.setattr(tempfile, "TemporaryFile", Refused(errno.ENOSPC))
    before = opened()
    got, frame = passed({"a": np.arange(3.0)})
    assert got["version"] == 1
    np.testing.assert_array_equal(got["weights"]["a"], np.arange(3.0))
    assert "parcel" not in frame
    assert opened() == before


def test_another_process_reads_it_and_who_writes_to_it_changes_nothing_here() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        command = [sys.executable, "-c", THERE, str(theirs.fileno())]
        child = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        made = Parcel({"a": np.arange(100_000.0)})
        for version in (1, 2):
            made.send(mine, {"version": version}, "weights")
        assert child.communicate(timeout=30)[0].split() == ["1", "4999950000.0", "2", "4999950000.0"]


def test_an_end_that_is_gone_is_told() -> None:
    mine, theirs = socket.socketpair()
    with mine:
        theirs.close()
        with pytest.raises(wire.Closed):
            Parcel({"a": np.zeros(1 << 20)}).send(mine, {}, "weights")
    mine, theirs = socket.socketpair()
    with theirs:
        wire.send(mine, {"weights": {}, "parcel": "weights"})
        mine.close()
        with pytest.raises(wire.Closed):
            parcel.receive(theirs)
