"""A reward by a person's own program. It runs where untrusted programs do: a model wrote what it reads."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.post.rewards import Item
from shunter.post.sandbox.box import Case, Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES


class Checked:
    """The rule `checker`: a Python program that is run once an answer, in a fork of its own.

    It reads one JSON object from its standard input, {"prompt", "answer", "target", "finished"}, and prints a
    number in its last line. One that prints none, ends with an error, or takes too long has graded nothing.
    """

    name = "checker"

    def __init__(self, box: Sandbox, code: str, *, seconds: float = 2.0) -> None:
        self.box, self.code, self.seconds = box, code, seconds
        self.told: dict[str, int] = {}  # how runs ended, by status

    @classmethod
    def load(cls, box: Sandbox, path: Path, *, seconds: float) -> Checked:
        """Of a file. Raises ShunterError for one that cannot be read, or is no Python."""
        try:
            code = path.read_text(encoding="utf-8")
            ast.parse(code)
        except (OSError, UnicodeDecodeError) as error:
            box.close()
            raise ShunterError(f"the checker cannot be read ({error})", where=str(path)) from None
        except (SyntaxError, ValueError) as error:
            box.close()
            raise ShunterError(f"the checker is no Python ({error})", where=str(path)) from None
        return cls(box, code, seconds=seconds)

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        asked = [
            json.dumps(
                {"prompt": it.prompt, "answer": it.answer, "target": it.target, "finished": it.finished}
            )
            for it in items
        ]
        programs = [Program(LANGUAGES["python"], self.code, [given], self.seconds) for given in asked]
        found = [self._score(ended[-1]) for ended in self.box.run(programs)]
        for score in found:
            how = "graded" if isinstance(score, float) else "failed"
            self.told[how] = self.told.get(how, 0) + 1
        return found

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        """None are known: what it should say, only its author knows."""
        return []

    def close(self) -> None:
        """End the sandbox."""
        self.box.close()

    def _score(self, ended: Case) -> float | str:
        lines = (ended.output if ended.status == "ok" else ended.errors).strip().splitlines()
        last = lines[-1].strip()[:200] if lines else ""
        if ended.status != "ok":
            return f"the checker ended with {ended.status!r}" + (f": {last}" if last else "")
        try:
            score = float(last)
        except ValueError:
            return f"the checker's last line is no number: {last!r}"
        return score if math.isfinite(score) else f"the checker said {last}"
