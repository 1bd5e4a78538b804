"""A death that comes again is told as one, with the last that the rank said.

What this cannot show: that the last line is the cause. It is what stands last before the launcher noticed.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from shunter.launch import elastic
from shunter.launch.elastic import cause
from shunter.launch.recur import NOTICED, CollectiveTimeout, RankDied, forget, last_words, told_again

ABORTED = """\
a line of the training
terminate called after throwing an instance of 'gloo::EnforceNotMet'
  what():  [enforce fail at pair.cc:456] op.preamble.length <= op.nbytes. 1200 vs 600

shunter: a rank has ended
[E1126 14:36:28.100] Connection closed by peer
"""
GLOO = "what():  [enforce fail at pair.cc:456] op.preamble.length <= op.nbytes. 1200 vs 600"


def died(folder: Path) -> RankDied:
    output = folder / "output.txt"
    output.write_text(ABORTED)
    return RankDied("rank 1 was ended by SIGABRT", where=str(output), mend="Run the same command again.")


def test_the_last_line_before_the_launcher_s_own(tmp_path: Path) -> None:
    died(tmp_path)
    assert last_words(tmp_path / "output.txt") == GLOO
    assert last_words(tmp_path / "none.txt") is None
    (tmp_path / "silent.txt").write_text(ABORTED[ABORTED.index(NOTICED) :])
    assert last_words(tmp_path / "silent.txt") is None


@pytest.mark.parametrize("step", [7, None])
def test_the_second_time_at_one_step_says_so_and_what_the_rank_said(tmp_path: Path, step: int | None) -> None:
    first = died(tmp_path)
    assert told_again(first, tmp_path, step) is first
    again = told_again(died(tmp_path), tmp_path, step)
    assert again.where == first.where
    assert "Run the same command" not in str(again)
    for word in (
        "rank 1 was ended by SIGABRT",
        "the second time",
        GLOO,
        "after step 7" if step else "before its first",
    ):
        assert word in str(again), word
    assert "the third time" in str(told_again(died(tmp_path), tmp_path, step))


def test_another_step_or_a_success_in_between_begins_anew(tmp_path: Path) -> None:
    told_again(died(tmp_path), tmp_path, 7)
    assert "time" not in str(told_again(died(tmp_path), tmp_path, 9))
    told_again(died(tmp_path), tmp_path, 9)
    forget(tmp_path)
    assert "time" not in str(told_again(died(tmp_path), tmp_path, 9))


def test_what_stands_there_from_elsewhere_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "died.json").write_text('["no such thing"]')
    assert "time" not in str(told_again(died(tmp_path), tmp_path, 7))


@pytest.mark.parametrize("turned", [False, True])
def test_a_rank_that_the_launcher_ended_is_not_the_cause(turned: bool) -> None:
    """The launcher sends SIGTERM to those that are left, who may be gone before they could tell anything."""
    ended = [(0, -signal.SIGTERM), (1, -signal.SIGKILL)]
    error = cause([], ended[::-1] if turned else ended, "otherwise", Path("output.txt"))
    assert "rank 1 was ended by SIGKILL" in str(error)


def failed(rank: int, said: str, *, lost: bool) -> dict[str, Any]:
    return {"time": 0.0, "rank": rank, "user": False, "traceback": said, "what": said, "where": None,
            "mend": None, "lost": lost}  # fmt: skip


def test_a_rank_that_lost_another_is_not_the_cause_though_its_clock_says_so() -> None:
    """The clocks of two machines."""
    told = [failed(0, "rank 0 lost another rank", lost=True), failed(2, "a bug", lost=False)]
    assert str(cause(told, [(0, 1), (2, 1)], "otherwise", Path("output.txt"))) == "rank 2 failed:\na bug"
    alone = cause(told[:1], [(0, 1)], "otherwise", Path("output.txt"))
    assert isinstance(alone, RankDied)
    assert "rank 0 lost another rank" in str(alone)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:36262"), True),
        (RuntimeError("Timed out waiting 30000ms for recv operation to complete"), True),
        (RuntimeError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"), True),
        (RuntimeError("ncclRemoteError: remote process exited or there was a network error: timeout"), True),
        (RuntimeError("writev: Broken pipe (Connection timed out)"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("a broken pipe of words"), False),
    ],
)
def test_what_torch_says_of_a_peer_that_is_gone(
    error: Exception, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(request: dict[str, Any], rank: int, size: int) -> None:
        raise error

    request = tmp_path / "request.json"
    request.write_text(json.dumps({"folder": str(tmp_path)}))
    monkeypatch.setattr(sys, "argv", ["rank", str(request)])
    for name in ("guard", "waited.leave_word"):  # of a rank's process, not of this one
        monkeypatch.setattr(f"shunter.launch.elastic.{name}", lambda *given: None)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert elastic.serve(work) == 1
    told = json.loads((tmp_path / "failed-1.json").read_text())
    assert told["lost"] == lost
    assert told["what"].startswith("rank 1 lost another rank") == lost
    assert told["late"] == any(words in str(error) for words in ("waiting", "operation timeout"))
    if lost:
        assert re.match(r"`raise error` \(test_recur.py, line \d+\)$", told["waited"])


def waits(rank: int, what: str, *, late: bool) -> dict[str, Any]:
    return {**failed(rank, f"rank {rank} lost another rank", lost=True), "late": late, "waited": what}


def test_ranks_that_wait_for_each_other_are_no_lost_rank() -> None:
    """Of each it is told for what it waited, though only the first waited until the end: it leaves, and the
    others see that it is gone."""
    failures = [
        waits(2, "to add up gradients", late=True),
        waits(0, "to hear rank 0", late=False),
        waits(1, "to add up gradients", late=False),
    ]
    error = cause(failures, [(2, 1), (0, 1), (1, 1)], "otherwise", Path("output.txt"))
    assert isinstance(error, CollectiveTimeout)
    assert error.what == (
        "no rank died, but a wait took longer than how.parallel.timeout allows: "
        "rank 0 waited: to hear rank 0; ranks 1, 2 waited: to add up gradients"
    )
    assert error.where == "output.txt"
    assert "Each waits for another" in str(error)


def test_one_that_told_nothing_when_another_had_waited_too_long_is_named() -> None:
    failures = [waits(0, "to hear rank 1", late=True)]
    error = cause(failures, [(0, 1), (1, -signal.SIGTERM)], "otherwise", Path("output.txt"))
    assert isinstance(error, CollectiveTimeout)
    assert "rank 0 waited: to hear rank 1; rank 1 told nothing until it was ended" in str(error)
    assert "Look at what rank 1 did" in str(error)


@pytest.mark.parametrize(
    ("failures", "ended", "says"),
    [
        ([waits(0, "for rank 1", late=True)], [(0, 1), (1, -signal.SIGKILL)], "rank 1 was ended by SIGKILL"),
        ([waits(0, "for rank 1", late=False)], [(0, 1), (1, -signal.SIGTERM)], "rank 0 lost another rank"),
        ([waits(0, "", late=True), failed(1, "a bug", lost=False)], [(0, 1), (1, 1)], "rank 1 failed"),
    ],
    ids=["died", "connection", "bug"],
)
def test_a_rank_that_died_or_failed_comes_before_those_that_waited_for_it(
    failures: list[dict[str, Any]], ended: list[tuple[int, int]], says: str
) -> None:
    error = cause(failures, ended, "otherwise", Path("output.txt"))
    assert says in str(error)
    assert not isinstance(error, CollectiveTimeout)


def test_a_wait_that_is_too_long_again_is_told_as_one(tmp_path: Path) -> None:
    error = CollectiveTimeout("no rank died", where=str(tmp_path / "none.txt"), mend="Look.")
    assert told_again(error, tmp_path, 3) is error
    again = told_again(error, tmp_path, 3)
    assert isinstance(again, CollectiveTimeout)
    assert "it was the second time after step 3" in str(again)
