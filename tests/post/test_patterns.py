"""Patterns with a limit on their time: what matches, what takes too long, and a process that is killed."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from shunter.post.patterns import Patterns
from shunter.post.rewards import Grader, Item, Matches

PATTERNS = Patterns(0.2)
ENDLESS = "(a+)+b"


@given(st.sampled_from([r"[\d ]+", "a.*", ".*", "(x|y){2}", r"\s*"]), st.text(alphabet="axy1 \n\ud800"))
def test_what_matches_is_what_matches_here(pattern: str, text: str) -> None:
    assert PATTERNS.match(pattern, text) == (re.fullmatch(pattern, text, re.DOTALL) is not None)


def test_a_pattern_that_takes_forever_is_told_and_holds_nothing_up() -> None:
    begin = time.process_time()
    said = PATTERNS.match(ENDLESS, "a" * 60)
    assert isinstance(said, str)
    assert "more than 0.2 s" in said
    assert PATTERNS.match("a+", "aaa") is True
    assert time.process_time() - begin < 0.2, "it is not this process that has worked"
    assert "no regular expression" in str(PATTERNS.match("(", "a"))


def test_a_process_that_was_killed_is_replaced() -> None:
    mine = Patterns()
    assert mine.match("a", "a") is True
    process = mine.answering.process
    assert process is not None
    process.kill()
    process.wait()
    assert mine.match("a", "b") is False
    process = mine.answering.process
    assert process is not None
    del mine
    assert process.poll() is not None, "it ends with the last reference"


def test_the_rule_counts_what_it_cannot_grade_and_sees_a_matcher_that_lies() -> None:
    rule = Matches(ENDLESS)
    rule.patterns = PATTERNS
    grader = Grader([(rule, 1.0)])
    graded = grader.grade([Item("q", answer, "") for answer in (" aab\n", "a" * 60, "b")])
    assert [one.total for one in graded] == [1.0, 0.0, 0.0]
    assert grader.failures == {"format": 1}
    assert grader.canaries == 2
