"""The tool `python`: programs of a model run in the sandbox, and the model is told what they print."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from shunter.data.tokenizer import Tokenizer
from shunter.generate.config import ToolConfig
from shunter.post.interpreter import BETWEEN, Tools
from shunter.post.sandbox.box import LEAST
from tests.evaluate.small import a_tokenizer
from tests.generate.test_toolbox import said
from tests.post.sandbox.running import or_skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return a_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def box(tokenizer: Tokenizer) -> Iterator[Tools]:
    config = ToolConfig(tools=["python", "calculator"], form="json", room=48, seconds=0.3)
    with or_skip():
        made = Tools(config, tokenizer)
    with made:
        yield made


def told(box: Tools, name: str, what: object) -> str:
    """what: a program, or all arguments of a call."""
    arguments = {"code": what} if isinstance(what, str) else what
    call = json.dumps({"name": name, "arguments": arguments})
    ids = box(said(box.tokenizer, f"<tool_call>{call}</tool_call>"))
    assert ids is not None
    return box.tokenizer.decode(ids).removeprefix("<|tool|>").removesuffix("<|end|><|assistant|>")


def test_what_a_program_prints_is_the_answer(box: Tools) -> None:
    assert told(box, "python", "for n in range(3):\n    print(n, n * n)") == "0 0\n1 1\n2 4"
    assert told(box, "calculator", "6*7") == "42"
    assert told(box, "python", "x = 1") == "error: nothing was printed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"code": "print(6 * 7)", "timeout": 5, "why": "to see"}, "42"),
        ({"timeout": 5, "program": "print(6 * 7)"}, "42"),
        ({"code": "```python\nprint(6 * 7)\n```"}, "42"),
        ({"code": 'print("""\n```\n7\n```""")'}, "```\n7\n```"),
        ({"code": ["print(6 * 7)"]}, "error: the call has no code"),
        ({"a": "print(1)", "b": "print(2)"}, "error: the call has no code"),
        ({}, "error: the call has no code"),
        (7, "error: the call has no code"),
    ],
)
def test_the_program_of_a_call(box: Tools, arguments: object, says: str) -> None:
    assert told(box, "python", arguments) == says


def test_each_program_runs_by_itself(box: Tools) -> None:
    told(box, "python", "x = 5\nopen('/tmp/x', 'w').write('5')\nprint(x)")
    assert "NameError" in told(box, "python", "print(x)")
    assert "FileNotFoundError" in told(box, "python", "print(open('/tmp/x').read())")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while True: pass", "error: the program was ended: timeout"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "error: "),
        ("import os; os._exit(3)", "error: exit code 3"),
        ("(", "error: SyntaxError"),
    ],
)
def test_a_program_that_fails_is_told_and_counted(box: Tools, code: str, why: str) -> None:
    box.taken()
    assert told(box, "python", code).startswith(why)
    assert box.taken() == (1, 1)


def test_a_program_that_waits_is_soon_ended(box: Tools) -> None:
    begin = time.perf_counter()
    assert told(box, "python", "import time\ntime.sleep(99)") == "error: the program was ended: timeout"
    assert time.perf_counter() - begin < LEAST, "a reward's has so long"


def test_of_much_output_beginning_and_end_are_told(box: Tools) -> None:
    found = told(box, "python", "print('first', 'and ' * 500, 'last')")
    assert found.startswith("first and")
    assert BETWEEN in found
    assert found.endswith("last")
    assert len(box.tokenizer.encode(found)) <= 54


def test_of_an_output_without_end_little_is_encoded(box: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, lengths = Tokenizer.encode, [0]

    def counted(self: Tokenizer, text: str) -> list[int]:
        lengths.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    box.taken()
    found = told(box, "python", "print('first', 'and ' * 9999, 'last')")
    assert (found[:9], found[-4:]) == ("first and", "last")
    found = told(box, "python", "print('first')\nwhile True: print('and ' * 999)")
    assert (found[:9], found[-5:]) == ("first\nand", " ... ")
    assert box.taken() == (2, 0)
    assert max(lengths) <= 16 * box.config.room


def test_none_begins_anew_after_its_end(box: Tools, tokenizer: Tokenizer) -> None:
    with Tools(box.config, tokenizer) as other:
        sandbox = other.interpreter and other.interpreter.box
    assert sandbox is not None
    assert sandbox._process is None
    with pytest.raises(RuntimeError, match="closed"):
        told(other, "python", "print(1)")


def test_settings_that_cannot_be() -> None:
    for wrong in (
        {"tools": ["python"]},
        {"tools": ["calculator", "python"]},
        {"tools": ["python", "python"], "form": "json"},
        {"seconds": 1.0},
    ):
        with pytest.raises(ValidationError):
            ToolConfig.model_validate(wrong)
