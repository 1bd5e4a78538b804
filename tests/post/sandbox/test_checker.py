"""Rewards by a person's own program, which runs where programs of models run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.post.rewards import Grader, Item
from shunter.post.sandbox.box import Sandbox
from shunter.post.sandbox.checker import Checked

BACKWARDS = """
import json
told = json.loads(input())
print("of", told["prompt"], told["finished"])
print(1.0 if told["answer"].strip() == told["target"][::-1] else 0.0)
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    try:
        made = Sandbox(slots=2)
    except ShunterError as refused:
        pytest.skip(str(refused))
    with made:
        yield made


def test_it_says_what_an_answer_is_worth(box: Sandbox) -> None:
    rule = Checked(box, BACKWARDS)
    items = [Item("q", answer, "abc") for answer in ("cba", "abc", 'quo"te\n')]
    assert [one.total for one in Grader([(rule, 2.0)]).grade(items)] == [2.0, 0.0, 0.0]
    assert rule.told == {"graded": 3}


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise ValueError('this way')", "ended with 'error': ValueError: this way"),
        ("while True: pass", "ended with 'timeout'"),
        ("print('good')", "last line is no number: 'good'"),
        ("pass", "last line is no number: ''"),
        ("print('nan')", "said nan"),
        ("import os; os._exit(0)", "no number"),
    ],
)
def test_what_grades_nothing_is_told(box: Sandbox, code: str, complaint: str) -> None:
    rule = Checked(box, f"if 'bad' in input():\n  {code}\nelse: print(3)", seconds=0.3)
    grader = Grader([(rule, 1.0)])
    graded = grader.grade([Item("q", answer, "t") for answer in ("bad", "fine")])
    assert [one.total for one in graded] == [0.0, 3.0]
    assert complaint in graded[0].failed[0]
    assert grader.failures == {"checker": 1}
    assert rule.told == {"failed": 1, "graded": 1}


def test_one_answer_does_not_change_the_reward_of_another(box: Sandbox, tmp_path: Path) -> None:
    """A checker that runs what an answer says, as some do: it is a fork of its own."""
    code = "import json\nexec(json.loads(input())['answer'])\nprint(len(open('/tmp/x', 'a+').read()))"
    spoil = "import builtins; open('/tmp/x', 'w').write('mine'); builtins.len = lambda x: 9"
    graded = Grader([(Checked(box, code), 1.0)]).grade([Item("q", a, "t") for a in ("pass", spoil, "pass")])
    assert [graded[0].total, graded[2].total] == [0.0, 0.0]


def test_a_file_that_is_none_is_refused(box: Sandbox, tmp_path: Path) -> None:
    class Closing:
        closed = 0

        def close(self) -> None:
            Closing.closed += 1

    with pytest.raises(ShunterError, match="cannot be read"):
        Checked.load(Closing(), tmp_path / "none.py", seconds=1.0)  # type: ignore[arg-type]
    (tmp_path / "no.py").write_text("print(")
    with pytest.raises(ShunterError, match="is no Python"):
        Checked.load(Closing(), tmp_path / "no.py", seconds=1.0)  # type: ignore[arg-type]
    assert Closing.closed == 2
    (tmp_path / "yes.py").write_text(BACKWARDS)
    assert json.dumps(Checked.load(box, tmp_path / "yes.py", seconds=1.0).code)
