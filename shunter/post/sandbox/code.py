"""A reward for programs: those that print what they should for every input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shunter.config.errors import ShunterError
from shunter.post.rewards import Item
from shunter.post.sandbox.box import Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES, Language, last_program


class Passes:
    """The rule `code`. A target is JSON: a list of {"input", "output"}.

    1 where the program in the answer's last fenced block prints the output of every case, but for white space
    at the ends of lines and of the whole; else 0, also without a block. Form alone is worth nothing. partial:
    for a program that ran all cases without an error and printed something else; a model learns to print
    anything then, which is why it is 0 unless asked for.
    """

    name = "code"

    def __init__(
        self, box: Sandbox, language: Language, *, seconds: float = 2.0, partial: float = 0.0
    ) -> None:
        self.box, self.language, self.seconds, self.partial = box, language, seconds, partial
        self.told: dict[str, int] = {}  # how programs ended, by status, without canaries
        self._try()

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        found: list[float | str] = [0.0] * len(items)
        asked: list[tuple[int, list[tuple[str, str]]]] = []
        programs = []
        for i, item in enumerate(items):
            try:
                tests = cases(item.target)
            except ValueError as error:
                found[i] = str(error)
                continue
            code = last_program(item.answer)
            if code is None:
                self._count(item, "no block")
                continue
            language = LANGUAGES["python"] if item.prompt == _PYTHON else self.language
            asked.append((i, tests))
            programs.append(Program(language, code, [given for given, _ in tests], self.seconds))
        for (i, tests), ended in zip(asked, self.box.run(programs), strict=True):
            bad = next((case.status for case in ended if case.status != "ok"), None)
            if bad is None:
                right = all(same(case.output, out) for case, (_, out) in zip(ended, tests, strict=True))
                bad = "pass" if right else "wrong output"
                found[i] = 1.0 if right else self.partial
            self._count(items[i], bad)
        return found

    def close(self) -> None:
        """End the sandbox."""
        self.box.close()

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        """Programs of Python, right, ending before it prints, and without a block, and the sample of the
        language that is taught, if it has one; none depends on the data."""
        target = json.dumps([{"input": "20 3", "output": "23"}])
        right = "```\nprint(sum(map(int, input().split())))\n```"
        known = [
            (Item(_PYTHON, right, target), 1.0),
            (Item(_PYTHON, "```\nimport os\nos._exit(0)\n```", target), self.partial),
            (Item(_PYTHON, "print(23)", target), 0.0),
        ]
        if (sample := self.language.sample) is not None:
            target = json.dumps([{"input": sample.input, "output": sample.output}])
            known.append((Item(_SAMPLE, f"```\n{sample.program.rstrip()}\n```", target), 1.0))
        return known

    def _count(self, item: Item, how: str) -> None:
        if item.prompt not in (_PYTHON, _SAMPLE):
            self.told[how] = self.told.get(how, 0) + 1

    def _try(self) -> None:
        """Raise ShunterError where the language does not run in sight of programs, or its sample does not
        print what it should: each answer would be worth nothing then."""
        sample, seconds = self.language.sample, max(self.seconds, 2.0)
        given = Program(self.language, "", [""], seconds)
        if sample is not None:
            given = Program(self.language, sample.program, [sample.input], seconds)
        ended = self.box.run([given])[0][-1]
        lost = ended.code in (126, 127)
        if not lost and (sample is None or (ended.status == "ok" and same(ended.output, sample.output))):
            return
        self.box.close()
        if lost:
            raise ShunterError(
                f"the language {self.language.name} cannot be run in the sandbox, which shows programs /usr, "
                "/bin, /lib and Python alone",
                mend=self.language.install,
            )
        said = (ended.errors or ended.output).strip().splitlines()
        raise ShunterError(
            f"the sample of the language {self.language.name} ended with {ended.status!r}"
            + (f": {said[-1][:200]}" if said else " and printed nothing"),
            mend="Raise `memory` or `processes` of the language, or mend its sample.",
        )


_PYTHON, _SAMPLE = "\x00python", "\x00sample"  # no person's prompt begins so


def cases(target: str) -> list[tuple[str, str]]:
    """Inputs and outputs of a target. Raises ValueError for one that has none."""
    try:
        found: Any = json.loads(target)
    except RecursionError:
        raise ValueError("the target is nested too deeply") from None
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise ValueError("the target is no list of cases")
    try:
        made = [(str(each["input"]), str(each["output"])) for each in found]
    except KeyError as error:
        raise ValueError(f"a case has no {error}") from None
    for text in (text for pair in made for text in pair):
        text.encode()  # half of a pair of surrogates is a ValueError
    return made


def same(printed: str, wanted: str) -> bool:
    """Whether two outputs are the same but for white space at the ends of lines and of the whole."""
    a, b = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, wanted))
    return a == b
