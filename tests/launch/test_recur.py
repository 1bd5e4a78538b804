"""A death that comes again is told as one, with the last that the rank said.

What this cannot show: that the last line is the cause. It is what stands last before the launcher noticed.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from shunter.launch.elastic import cause
from shunter.launch.recur import NOTICED, RankDied, forget, last_words, told_again

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
