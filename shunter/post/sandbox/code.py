"""A reward for programs: those that print what they should for every input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shunter.config.errors import ShunterError
from shunter.post.rewards import CANARY, Item
from shunter.post.sandbox.box import Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES, Language, last_program


class Passes:
    """The rule `code`. A target is JSON: a list of {"input", "output"}.

    1 where the program in the answer's last fenced block prints the output of every case, but for white space
    at the ends of lines and of the whole; else 0, also without a block. Form alone is worth nothing. partial:
    for a program that ran all cases without an error and printed something else; a model learns to print
    anything then, which is why it is 0 unless asked for.

    Answers of a batch that hold the same program for the same inputs are graded by one run of it: a model
    that is sure of itself writes most of its programs many times. Canaries are run by themselves.
    """

    name = "code"

    def __init__(
        self, box: Sandbox, language: Language, *, seconds: float = 2.0, partial: float = 0.0
    ) -> None:
        self.box, self.language, self.seconds, self.partial = box, language, seconds, partial
        self.told: dict[str, int] = {}  # how programs ended, by status, without canaries
        try:
            language.check()
        except ShunterError:
            box.close()
            raise
        self._try()

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        found: list[float | str] = [0.0] * len(items)
        asked: list[tuple[int, list[tuple[str, str]], int]] = []
        programs: list[Program] = []
        places: dict[tuple[str, ...], int] = {}  # of a program with its inputs
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
            language = LANGUAGES["python"] if item.prompt == CANARY else self.language
            inputs = [given for given, _ in tests]
            place = len(programs)
            if item.prompt not in (CANARY, _SAMPLE):
                place = places.setdefault((code, *inputs), place)
            if place == len(programs):
                programs.append(Program(language, code, inputs, self.seconds))
            asked.append((i, tests, place))
        ran = self.box.run(programs)
        for i, tests, place in asked:
            ended = ran[place]
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
        """Programs that are right, in the language that is taught too, and one that ends before it prints;
        none depends on the data."""
        target = json.dumps([{"input": "20 3", "output": "23"}])
        sample = self.language.sample
        assert sample is not None
        own = json.dumps([{"input": sample.input, "output": sample.output}])
        right = "```\nprint(sum(map(int, input().split())))\n```"
        return [
            (Item(_SAMPLE, f"```\n{sample.program.rstrip()}\n```", own), 1.0),
            (Item(CANARY, right, target), 1.0),
            (Item(CANARY, "```\nimport os\nos._exit(0)\n```", target), self.partial),
            (Item(CANARY, "print(23)", target), 0.0),
        ]

    def _count(self, item: Item, how: str) -> None:
        if item.prompt not in (CANARY, _SAMPLE):
            self.told[how] = self.told.get(how, 0) + 1

    def _try(self) -> None:
        """Raise ShunterError where what the language runs is on the machine, but does not run in the sandbox:
        each program would be worth nothing then."""
        language, sample = self.language, self.language.sample
        assert sample is not None
        ended = self.box.run([Program(language, sample.program, [sample.input], self.seconds)])[0][-1]
        if ended.status != "ok" or not same(ended.output, sample.output):
            self.box.close()
            said = ended.errors.strip() or f"it printed {ended.output[:100]!r}"
            raise ShunterError(
                f"the language {language.name} cannot be run in the sandbox: its sample ended "
                f"with {ended.status} (code {ended.code}): {said[-300:]}",
                mend=f"Programs see /usr, /bin, /lib and Python, and have {language.memory} MiB, "
                f"{language.processes} processes and {self.seconds:g} s: `paths`, `memory`, `address_space`, "
                "`processes` and `compile_seconds` in the language's file, and `seconds`, give them more. "
                f"{language.install or ''}".strip(),
            )


_SAMPLE = "\x00sample"  # the prompt of a canary in the language that is taught; others are Python

_FORM = 'it is to be as in [{"input": "1 2", "output": "3"}]'


def cases(target: str) -> list[tuple[str, str]]:
    """Inputs and outputs of a target. Raises ValueError for one that has none."""
    try:
        found: Any = json.loads(target)
    except RecursionError:
        raise ValueError("the target is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the target is no JSON ({error}); {_FORM}") from None
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"the target is no list of cases; {_FORM}")
    try:
        made = [(str(each["input"]), str(each["output"])) for each in found]
    except KeyError as error:
        raise ValueError(f"a case has no {error}; {_FORM}") from None
    for text in (text for pair in made for text in pair):
        text.encode()  # half of a pair of surrogates is a ValueError
    return made


def same(printed: str, wanted: str) -> bool:
    """Whether two outputs are the same but for white space at the ends of lines and of the whole."""
    a, b = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, wanted))
    return a == b
