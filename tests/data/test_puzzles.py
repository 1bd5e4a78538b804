"""Puzzles: the answer is right, and no held-out one stands among those to learn from, in whatever order."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest

from shunter.config.errors import ShunterError
from shunter.data.puzzles import Kind, mistaken, puzzles
from shunter.jobs import conversations
from tests.jobs.conftest import Work, work

__all__ = ["work"]  # a fixture

KINDS = get_args(Kind)


def solved(kind: str, question: str) -> str:
    """The answer, from the words of the question alone."""
    shown = re.findall(r"\b(?:\d+|[a-e])\b", question)
    if kind == "parity":
        return ["even", "odd"][int(shown[0]) % 2]
    if kind == "largest":
        return max(shown)
    if kind == "count":
        wanted = re.findall(r"many ([a-e])", question)[0]
        return str(question.partition(" in ")[2].count(wanted))
    if kind == "sort":
        return " ".join(sorted(shown))
    if kind == "reverse":
        return " ".join(reversed(shown))
    if kind == "odd":
        return " ".join(digit for digit in shown if digit in "13579")
    a, op, b = question.removeprefix("What is ").removesuffix("?").split()
    return str(int(a) + int(b) if op == "+" else int(a) * int(b))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 4])
def test_answers_are_right(kind: Kind, length: int) -> None:
    for puzzle in islice(puzzles(kind, length, 3), 60):
        assert puzzle.messages[-1] == {
            "role": "assistant",
            "content": solved(kind, puzzle.messages[0]["content"]),
        }


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_wrong_and_of_the_same_form(kind: Kind) -> None:
    for puzzle in islice(puzzles(kind, 4, 3), 60):
        wrong = mistaken(puzzle, 1)
        right = puzzle.messages[-1]["content"]
        assert wrong.messages[-1]["content"] != right
        assert wrong.messages[:-1] == puzzle.messages[:-1]
        most = 6 if kind == "odd" else 2  # of which one up to as many as are shown may be named
        assert abs(len(wrong.messages[-1]["content"]) - len(right)) <= most


def test_wrong_answers_of_any_length_leave_out_more_than_they_add() -> None:
    """And name nothing that is not shown."""
    lengths = []
    for puzzle in islice(puzzles("odd", 8, 3), 400):
        asked, right = (message["content"] for message in puzzle.messages)
        said = mistaken(puzzle, 1).messages[-1]["content"].split()
        assert set(said) <= set(asked)
        lengths.append((len(said), len(right.split())))
    wrong, right = (sum(each) / len(lengths) for each in zip(*lengths, strict=True))
    assert wrong < 0.85 * right
    assert {said - wanted for said, wanted in lengths} >= set(range(-3, 3))


def test_a_share_of_the_answers_to_learn_from_is_wrong(work: Work) -> None:
    wanted = {"kinds": ["largest"], "count": 600, "test": 40, "length": 4, "wrong": 0.3}
    out, _ = work(conversations.JOB, {"puzzles": wanted, "heldout": 0.1})
    shares = []
    for split in ("train", "heldout"):
        talks = [json.loads(line)["messages"] for line in (out / f"{split}.jsonl").read_text().splitlines()]
        wrong = [talk[1]["content"] != solved("largest", talk[0]["content"]) for talk in talks]
        shares.append(sum(wrong) / len(wrong))
    assert shares[0] == pytest.approx(0.3, abs=0.06)
    assert shares[1] == 0


def made(work: Work, count: int, kinds: list[str], name: str) -> dict[str, list[list[dict[str, str]]]]:
    wanted = {"kinds": kinds, "count": count, "test": 40, "length": 4}
    out, metrics = work(conversations.JOB, {"puzzles": wanted, "heldout": 0.1}, name=name)
    found = {
        split: [json.loads(line)["messages"] for line in (out / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "heldout")
    }
    assert (metrics["train"], metrics["heldout"]) == (count * len(kinds), 40 * len(kinds))
    return found


def test_what_is_held_out_stands_in_no_order_among_the_others(work: Work) -> None:
    found = made(work, 600, ["largest", "sort", "count", "calculate"], "many")

    def keys(split: str) -> set[str]:
        return {
            re.sub(r"[\d a-e]*(?: in )?[\d a-e]*$", "", talk[0]["content"].rstrip("?."))
            + "".join(sorted(re.findall(r"\d+|\b[a-e]\b|[+*]", talk[0]["content"])))
            for talk in found[split]
        }

    assert not keys("train") & keys("heldout")
    questions = [talk[0]["content"] for split in found.values() for talk in split]
    assert len(set(questions)) == len(questions)


def test_a_job_that_makes_fewer_holds_out_the_same(work: Work) -> None:
    few, many = (made(work, count, ["reverse", "parity"], str(count)) for count in (30, 300))
    assert few["heldout"] == many["heldout"]
    assert all(talk in many["train"] for talk in few["train"])


def test_more_than_there_are_is_refused(work: Work, tmp_path: Path) -> None:
    wanted = {"kinds": ["parity"], "count": 50, "test": 5, "length": 1}
    with pytest.raises(ShunterError, match="not so many different puzzles of parity"):
        work(conversations.JOB, {"puzzles": wanted, "heldout": 0.1})
