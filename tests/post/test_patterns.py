"""Patterns with a limit on their time: what matches, what takes too long, and a process that is killed."""

from __future__ import annotations

import re
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.post import answering
from shunter.post.answering import Answering
from shunter.post.patterns import Patterns
from shunter.post.rewards import Grader, Item, Matches

PATTERNS = Patterns(0.2)
# Ends the process at "die" unless a file says that it did so before, and at "die twice" always.
MORTAL = """
import json, os, sys
for number, line in enumerate(sys.stdin.buffer):
    what = json.loads(line)[0]
    mark = os.path.join(sys.argv[1], "died")
    if what == "die twice" or (what == "die" and not os.path.exists(mark)):
        open(mark, "w").close()
        os._exit(1)
    if what == "die":
        os.unlink(mark)
    print(json.dumps(what), flush=True)
"""
SILENT = """
import json, sys, time
for line in sys.stdin.buffer:
    if json.loads(line) == 0:
        time.sleep(60)
    print(line.decode().strip(), flush=True)
"""
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


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "long", "late", "die", "die twice"]), max_size=12),
    st.sampled_from([1, 40, 1 << 15]),
)
def test_many_questions_are_answered_each_whatever_becomes_of_others(texts: list[str], room: int) -> None:
    """Any of them may end the process, once or each time that it is asked, or be longer than a pipe."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "ON_THEIR_WAY", room)
        asked = Answering(["-c", MORTAL, folder], 20.0)
        questions = [[each, "x" * 200_000 if each == "long" else ""] for each in texts]
        said = asked.ask_all(questions)
        asked.close()
    alive = {"a": "a", "b": "b", "long": "long", "late": "late", "die": "die", "die twice": None}
    assert said == [alive[each] for each in texts]


def test_a_silent_one_is_given_up_and_the_rest_is_answered() -> None:
    asked = Answering(["-c", SILENT], 0.5)
    assert asked.ask_all([1, 0, 2]) == [1, None, 2]


def test_the_rule_counts_what_it_cannot_grade_and_sees_a_matcher_that_lies() -> None:
    rule = Matches(ENDLESS)
    rule.patterns = PATTERNS
    grader = Grader([(rule, 1.0)])
    graded = grader.grade([Item("q", answer, "") for answer in (" aab\n", "a" * 60, "b")])
    assert [one.total for one in graded] == [1.0, 0.0, 0.0]
    assert grader.failures == {"format": 1}
    assert grader.canaries == 2
