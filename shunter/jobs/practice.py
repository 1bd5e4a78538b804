"""Conversations to practise on: what is asked is made, as much of it as is wanted, and can be checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

from pydantic import Field, PositiveInt

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.programs import problems, written
from shunter.data.puzzles import Kind, mistaken, puzzles
from shunter.data.talks import Talk

# What stands around a planted question, in the order of use; never nothing, as a conversation that is there
# twice is kept once.
PHRASES = [
    f"{before}{{}}{after}"
    for after in ("", " Thank you.", " Be quick.", " I wonder.")
    for before in ("Please tell me. ", "Now this one. ", "One more: ", "")
    if before or after
]
Side = Callable[[str], str]  # the split that a key belongs to
Made = TypeVar("Made")


class PuzzlesConfig(Config):
    """Questions whose answers a rule can check; jobs with one seed and one `heldout` hold out the same."""

    kinds: list[Kind] = Field(
        min_length=1,
        description="parity, largest of some digits, count of a letter, sort, reverse, odd ones; calculate.",
    )
    count: PositiveInt | dict[Kind, PositiveInt] = Field(
        1000, description="To learn from: of each kind, or by kind."
    )
    test: int = Field(200, ge=0, le=100_000, description="Of each kind, held out.")
    length: int = Field(5, ge=1, le=18, description="Digits or letters in one.")
    wrong: float = Field(
        0.0,
        ge=0,
        le=0.9,
        exclude_if=lambda value: value == 0,  # those without are what they were before there were any
        description="Share of the answers to learn from that are wrong, as in data that nobody has checked.",
    )
    planted: int = Field(
        0,
        ge=0,
        le=len(PHRASES),
        exclude_if=lambda value: value == 0,
        description="How often each held-out question also stands among those to learn from, answered and "
        "each time with another phrase beside it, as in data that holds an evaluation: to measure what "
        "`decontaminate` does.",
    )


class ProgramsConfig(Config):
    """Problems whose answers are programs. What is asked stands in no other split, in whatever language."""

    languages: dict[Literal["stack", "prefix"], int] = Field(
        min_length=1, description="How many problems to learn from there are in each language."
    )
    test: int = Field(100, ge=0, le=100_000, description="In each language, held out.")
    length: int = Field(3, ge=2, le=6, description="Numbers in an expression, at most.")
    answers: Literal["programs", "cases"] = Field(
        "programs", description="What the assistant says: programs, to imitate; cases, to run an answer on."
    )


def puzzled(wanted: PuzzlesConfig, side: Side, seed: int) -> Iterator[tuple[str, Talk]]:
    """As many different ones of each kind as were asked for."""
    for kind in wanted.kinds:
        drawn = ((p.key, p.messages[0]["content"], p) for p in puzzles(kind, wanted.length, seed))
        count = wanted.count if isinstance(wanted.count, int) else wanted.count.get(kind, 1)
        for number, split, puzzle in _sides(drawn, count, wanted.test, f"puzzles of {kind}", side):
            if split == "train" and derive_seed(seed, "wrong", puzzle.key) / 2**63 < wanted.wrong:
                puzzle = mistaken(puzzle, seed)
            yield split, Talk(f"{puzzle.key}@{number}", kind, puzzle.messages)
            if split == "heldout":
                for phrase in PHRASES[: wanted.planted]:
                    asked, *rest = puzzle.messages
                    said = {**asked, "content": phrase.format(asked["content"])}
                    yield "train", Talk(f"{puzzle.key}@{number} {phrase}", kind, [said, *rest])


def programmed(wanted: ProgramsConfig, side: Side, seed: int) -> Iterator[tuple[str, Talk]]:
    """The same problems in each language, as many as were asked for."""
    for language, count in wanted.languages.items():
        drawn = ((p.key, p.statement, p) for p in problems(wanted.length, seed))
        for _, split, problem in _sides(drawn, count, wanted.test, "problems", side):
            answer = written(problem.tree, language)
            if wanted.answers == "cases":
                answer = problem.cases(seed)
            messages = [
                {"role": "user", "content": f"In {language}: {problem.statement}"},
                {"role": "assistant", "content": answer},
            ]
            yield split, Talk(f"{language} {problem.key}", language, messages)


def _sides(
    drawn: Iterable[tuple[str, str, Made]], count: int, test: int, what: str, side: Side
) -> Iterator[tuple[int, str, Made]]:
    """Of (key, text, thing) without end as many different texts as each split wants, numbered.

    Raises ShunterError when there are not so many.
    """
    left = {"train": count, "heldout": test}
    seen: set[str] = set()
    vain = 0  # drawn without a use, one after the other
    for key, text, thing in drawn:
        if not any(left.values()):
            return
        split = side(key)
        if text in seen or not left[split]:
            vain += 1
            if vain > 100 * (count + test) + 10_000:
                raise ShunterError(
                    f"there are not so many different {what}: {left['train']} to learn from and "
                    f"{left['heldout']} held out are missing",
                    mend="Ask for fewer or longer ones, or hold out another share (heldout).",
                )
            continue
        seen.add(text)
        left[split] -= 1
        vain = 0
        yield len(seen), split, thing
