"""Arrays in one file that several processes map: the same values, written once, and nothing left open.

What this cannot show: another machine, which cannot have them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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


def test_where_there_are_no_such_files_arrays_go_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    mine, theirs = socket.socketpair()
    with mine, theirs:
        Parcel({"a": np.arange(3.0)}).send(mine, {"version": 1}, "weights")
        got = parcel.receive(theirs)
    assert got["version"] == 1
    np.testing.assert_array_equal(got["weights"]["a"], np.arange(3.0))


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
