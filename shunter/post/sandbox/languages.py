"""Programming languages as data: five lines tell how a program is written, compiled and run.

After Agnostics (arXiv 2508.04865, section 3): the same executor for every language, and a prefix that tells
the model about one while it learns, which is left out when it is measured.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from pydantic import Field, field_validator

from shunter.config.base import Config
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.config.yaml import load

TOYS = Path(__file__).parent / "toys"
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)


class Sample(Config):
    """A program whose output is known."""

    program: str = Field(description="The program's text.")
    input: str = Field("", description="What it reads.")
    output: str = Field(description="What it prints.")


class Language(Config):
    """How programs of one language are run. In commands `{file}` is the program's file."""

    name: str = Field(description="What it is called.")
    filename: str = Field(pattern=r"^[\w.-]+$", description="File that a program is written to.")
    execute: str = Field(
        description="Command that runs it; `warm` as its first word: a Python file, without starting Python."
    )
    compile: str | None = Field(None, description="Command that runs before, once.")
    install: str | None = Field(None, description="What a person does to have it; never run by shunter.")
    prompt: str = Field("", description="What a model is told before each problem while it learns.")
    sample: Sample | None = Field(
        None,
        description="A program with its output: tried before anything begins, and graded in every batch. "
        "Without one, a language whose every program fails in the sandbox is not seen.",
    )
    memory: int = Field(512, ge=16, description="MiB of address space that a process may take.")
    processes: int = Field(8, ge=1, le=1024, description="Processes and threads that a program may have.")

    @field_validator("execute", "compile")
    @classmethod
    def _words(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):
            raise ValueError("the command is empty")
        return command

    def words(self, command: str) -> list[str]:
        """A command's words; no shell reads them."""
        return [word.replace("{file}", self.filename) for word in shlex.split(command)]

    def check(self) -> None:
        """Raise ShunterError when its program is not on this machine."""
        for command in (self.compile, self.execute):
            program = None if command is None else self.words(command)[0]
            if program not in (None, "warm") and shutil.which(str(program)) is None:
                raise ShunterError(
                    f"the language {self.name} needs {program!r}, which is not here", mend=self.install
                )


LANGUAGES = {
    language.name: language
    for language in (
        Language(name="python", filename="main.py", execute="warm {file}"),
        Language(name="stack", filename="main.stk", execute="warm /toys/stack.py {file}",
                 sample=Sample(program="read read + print", input="2 5", output="7")),
        Language(name="prefix", filename="main.pre", execute="warm /toys/prefix.py {file}",
                 sample=Sample(program="+ in * in 2", input="3 4", output="11")),
        Language(name="awk", filename="main.awk", execute="awk -f {file}", install="Install awk.",
                 sample=Sample(program="BEGIN { print 7 }", output="7")),
        Language(name="c", filename="main.c", compile="gcc -O1 -o main {file} -lm", execute="./main",
                 install="Install gcc.",
                 sample=Sample(program='#include <stdio.h>\nint main(void) { puts("7"); }\n', output="7")),
    )
}  # fmt: skip


def language(name: str, base: Path) -> Language:
    """A known language, or one that a YAML file tells. Raises ShunterError."""
    if name in LANGUAGES:
        return LANGUAGES[name]
    path = base / name
    if not path.is_file():
        raise ShunterError(
            f"no language is called {name!r}, and there is no such file",
            mend=f"There are {', '.join(LANGUAGES)}; a file has name, filename and execute.",
        )
    source = load(path)
    return parse(Language, source.data, source)


def last_program(answer: str) -> str | None:
    """What stands in the last fenced block of an answer; None where there is none."""
    found = _FENCE.findall(answer)
    return found[-1] if found else None
