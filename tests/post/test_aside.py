"""Rules in a process of their own: the same scores, a limit on their time, and a process that is killed."""

from __future__ import annotations

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.post.answering import Answering
from shunter.post.aside import Aside
from shunter.post.config import RewardConfig
from shunter.post.rewards import Grader, Item, rule

RULE = rule(RewardConfig(kind="number"))
ASIDE = Aside(RewardConfig(kind="number"), RULE)
TEXTS = st.text(alphabet='a1./ {}\\"\n\ud800é', max_size=12) | st.sampled_from(
    ["7", "so 7.0", r"\boxed{1/2}", "none", "1e5", "2^3"]
)

SLOW = """
import sys
from shunter.post import aside, rewards
rewards.RULE_SECONDS = 0.1
def slow(answer, target):
    while answer == "slow":
        pass
    return 1.0
rewards.TEXTS["exact"] = slow
aside._serve(sys.argv[1])
"""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_scores_are_those_of_the_rule_here(pairs: list[tuple[str, str]]) -> None:
    items = [Item("q", answer, target) for answer, target in pairs]
    assert ASIDE.grade(items) == RULE.grade(items)


def test_a_rule_that_takes_for_ever_is_ended_also_where_a_thread_grades() -> None:
    config = RewardConfig(kind="exact")
    made = Aside(config, rule(config))
    made.answering = Answering(["-c", SLOW, config.model_dump_json()], 60.0, made.answering.environment)
    found: list[float | str] = []
    items = [Item("q", answer, "b") for answer in ("a", "slow", "b")]
    thread = threading.Thread(target=lambda: found.extend(made.grade(items)))
    thread.start()
    thread.join(30.0)
    assert found == [1.0, "it took more than 0.1 CPU seconds", 1.0]
    made.close()


def test_one_that_was_killed_is_replaced_and_one_that_is_silent_is_given_up() -> None:
    made = ASIDE
    assert made.grade([Item("q", "7", "7")]) == [1.0]
    process = made.answering.process
    assert process is not None
    process.kill()
    process.wait()
    assert made.grade([Item("q", "8", "7")]) == [0.0]
    made.answering, kept = Answering(["-c", "import time; time.sleep(60)"], 0.1), made.answering
    begin = time.monotonic()
    assert made.grade([Item("q", "7", "7")]) == ["the process that applies the rule gave no answer"]
    assert time.monotonic() - begin < 20
    made.answering = kept


def test_canaries_ride_with_it() -> None:
    grader = Grader([(ASIDE, 1.0)])
    assert [one.total for one in grader.grade([Item("q", a, "7") for a in ("7", "8")])] == [1.0, 0.0]
    assert grader.canaries == 2
