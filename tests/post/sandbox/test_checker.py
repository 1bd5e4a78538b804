"""A person's own rule: it grades in the sandbox, and no answer reaches further than its own score."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs.taught import check_rewards, reads
from shunter.post.config import Known, RewardConfig
from shunter.post.rewards import Grader, Item
from shunter.post.sandbox import checker
from shunter.post.sandbox.box import Sandbox
from shunter.post.sandbox.checker import Checker
from tests.post.sandbox.running import PYTHON

# Half for the right length, half for the target; careless about what it reads.
SOURCE = """
import json, sys
asked = json.load(sys.stdin)
if asked["answer"].startswith("run "):
    exec(asked["answer"][4:])
print("looking at", asked["prompt"])
print(0.5 * (len(asked["answer"]) == 3) + 0.5 * (asked["target"] in asked["answer"]))
"""
KNOWN = (Known(answer="abc", target="b", score=1.0), Known(answer="", target="b", score=0.0))


def items(*answers: str) -> list[Item]:
    return [Item("q", answer, "b") for answer in answers]


def test_an_answer_is_worth_what_the_checker_prints(box: Sandbox) -> None:
    grader = Grader([(Checker(box, PYTHON, SOURCE, known=KNOWN), 2.0)])
    assert [one.total for one in grader.grade(items("abc", "xyz", "b", "long"))] == [2.0, 1.0, 1.0, 0.0]
    assert grader.canaries == 2


def test_an_answer_that_takes_the_checker_over_changes_no_other_score(box: Sandbox) -> None:
    """Each is checked in a fork of its own; what it can forge is its own score: the checker's fault."""
    rule = Checker(box, PYTHON, SOURCE, seconds=0.5, known=KNOWN)
    grader = Grader([(rule, 1.0)])
    hostile = (
        "run import builtins; builtins.print = lambda *a: None; json.load = None",
        "run while True: pass",
        "run import os; os.kill(-1, 9)",
        "run import os; os._exit(0)",
        "run print('nan'); sys.exit()",
    )
    graded = grader.grade(items("abc", *hostile, "abc"))
    assert [one.total for one in graded] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    says = ["printed", "timeout", "error", "printed", "printed"]
    assert all(word in one.failed[0] for word, one in zip(says, graded[1:-1], strict=True))
    assert grader.failures == {"checker": 5}


def test_a_checker_that_is_wrong_about_a_known_answer_ends_the_run(box: Sandbox) -> None:
    broken = Checker(box, PYTHON, "print(1)", known=KNOWN)
    with pytest.raises(ShunterError, match="whose score is known to be 0"):
        Grader([(broken, 1.0)]).grade(items("abc"))
    raises = Checker(box, PYTHON, "raise ValueError('no idea')")
    with pytest.raises(ShunterError, match=r"could grade no answer of a step .*no idea.*Look at its program"):
        Grader([(raises, 1.0)]).grade(items("abc"))
    endless = Checker(box, PYTHON, "while True: pass", seconds=0.2)
    with pytest.raises(ShunterError, match=r"timeout.*Look at its program.*`seconds`"):
        Grader([(endless, 1.0)]).grade(items("abc"))


def test_a_checker_is_a_file_that_makes_another_job_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SOURCE)
    config = RewardConfig.model_validate(
        {"kind": "checker", "file": "own.py", "known": [{"answer": "abc", "target": "b", "score": 1}]}
    )
    check_rewards([config], None, tmp_path)
    assert reads([config], tmp_path) == [tmp_path / "own.py"]
    assert checker.read(config, tmp_path) == SOURCE
    (tmp_path / "own.py").write_text("def (")
    with pytest.raises(ShunterError, match="no Python"):
        check_rewards([config], None, tmp_path)
    with pytest.raises(ShunterError, match="cannot be read"):
        check_rewards([config.model_copy(update={"file": "other.py"})], None, tmp_path)
    for wrong in (
        {"kind": "checker"},
        {"kind": "number", "file": "a"},
        {"kind": "number", "known": [KNOWN[0]]},
    ):
        with pytest.raises(ValueError, match="a reward of the kind checker"):
            RewardConfig.model_validate(wrong)
