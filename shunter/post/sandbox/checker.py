"""A person's own rule: a program that reads an answer and prints what it is worth, run in the sandbox."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.post.config import Known, RewardConfig
from shunter.post.rewards import Item, Unbounded
from shunter.post.sandbox.box import Case, Program, Sandbox
from shunter.post.sandbox.code import Passes
from shunter.post.sandbox.languages import Language, language


class Checker(Unbounded):
    """The rule `checker`. For each answer the program is run anew, in a fork that is used once: what it reads
    was written by a model, and may be meant to harm it.

    It is given one JSON object on standard input, with `prompt`, `answer`, `target` (texts) and `finished`,
    and prints a number as its last line. Canaries are the answers whose score a person has said.
    """

    name = "checker"
    mend = (
        "Look at its program, which `file` names: whether it reads such answers and targets, and prints a "
        "number within `seconds`."
    )

    def __init__(
        self,
        box: Sandbox,
        language: Language,
        source: str,
        *,
        seconds: float = 2.0,
        known: Sequence[Known] = (),
    ) -> None:
        self.box, self.language, self.source, self.seconds = box, language, source, seconds
        self.known = known

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        programs = [Program(self.language, self.source, [given(item)], self.seconds) for item in items]
        return [score(cases[-1]) for cases in self.box.run(programs)]

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        return [(Item(each.prompt, each.answer, each.target), each.score) for each in self.known]

    def close(self) -> None:
        """End the sandbox."""
        self.box.close()


def given(item: Item) -> str:
    """What a checker reads."""
    told = {"prompt": item.prompt, "answer": item.answer, "target": item.target, "finished": item.finished}
    return json.dumps(told) + "\n"


def score(ended: Case) -> float | str:
    """What a checker has printed, or a sentence on why that is no score."""
    if ended.status != "ok":
        said = ended.errors.strip().splitlines()
        return f"the checker ended with {ended.status} (code {ended.code}){': ' + said[-1] if said else ''}"
    lines = ended.output.strip().splitlines()
    try:
        found = float(lines[-1]) if lines else math.nan
    except ValueError:
        found = math.nan
    return found if math.isfinite(found) else f"the checker printed {ended.output[-100:]!r}, no number"


def check(config: RewardConfig, base: Path) -> None:
    """Raise ShunterError for a rule that runs programs, where it can be seen before anything is done."""
    spoken = language(config.language, base)
    spoken.check()
    if config.kind == "checker":
        source = read(config, base)
        if spoken.name == "python":
            try:
                ast.parse(source)
            except (SyntaxError, ValueError) as error:
                raise ShunterError(f"the checker is no Python ({error})", where=str(config.file)) from error


def read(config: RewardConfig, base: Path) -> str:
    """The program of a checker. Raises ShunterError where there is no such file."""
    path = base / str(config.file)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ShunterError(f"the checker cannot be read ({error})", where=str(path)) from error


def sandboxed(config: RewardConfig, base: Path) -> Passes | Checker:
    """The rule of a reward whose kind is `code` or `checker`, with a sandbox of its own."""
    spoken = language(config.language, base)
    if config.kind == "code":
        return Passes(Sandbox(), spoken, seconds=config.seconds, partial=config.partial)
    source = read(config, base)
    return Checker(Sandbox(), spoken, source, seconds=config.seconds, known=config.known)
