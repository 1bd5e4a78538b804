"""Programming languages as data: five lines tell how a program is written, compiled and run.

After Agnostics (arXiv 2508.04865, section 3): the same executor for every language, and a prefix that tells
the model about one while it learns, which is left out when it is measured.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from shunter.config.base import Config
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.config.yaml import load

TOYS = Path(__file__).parent / "toys"


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
    compile_seconds: float = Field(
        30.0,
        gt=0,
        description="CPU time that compiling may take, in seconds; by the clock ten times as long.",
    )
    install: str | None = Field(None, description="What a person does to have it; never run by shunter.")
    prompt: str = Field("", description="What a model is told before each problem while it learns.")
    sample: Sample | None = Field(
        None,
        description="A program with its output: a reward runs it before anything is taught and in every "
        "batch, so that a language that does not run here is seen. It needs one.",
    )
    memory: int = Field(512, ge=64, description="MiB that a program's processes may hold, all together.")
    address_space: int | None = Field(
        None,
        description="MiB that each may reserve, where its runtime reserves more than it uses (Go, Java, "
        "JavaScript); without it, as much as `memory`.",
    )
    processes: int = Field(32, ge=1, le=1024, description="Processes and threads that a program may have.")
    proc: bool = Field(
        False, description="Whether programs see /proc, with their own processes; Java needs it."
    )
    paths: list[str] = Field(
        [], description="What programs see, read-only, beside /usr, /bin, /lib and Python: folders or files."
    )

    @field_validator("execute", "compile")
    @classmethod
    def _words(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):
            raise ValueError("the command is empty")
        return command

    @field_validator("paths")
    @classmethod
    def _paths(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if not path.startswith("/") or path != os.path.normpath(path) or path == "/":
                raise ValueError(f"{path!r} is no plain path from / on, below it")
        return paths

    @model_validator(mode="after")
    def _compiled(self) -> Language:
        if self.compile is None and "compile_seconds" in self.model_fields_set:
            raise ValueError("compile_seconds belongs to a language with `compile`")
        return self

    def words(self, command: str) -> list[str]:
        """A command's words; no shell reads them."""
        return [word.replace("{file}", self.filename) for word in shlex.split(command)]

    def check(self) -> None:
        """Raise ShunterError when its program is not on this machine, or nothing would show that it does not
        run there."""
        if self.sample is None:
            raise ShunterError(
                f"the language {self.name} has no program that is known to run",
                mend='Add a line to its file: `sample: {program: "...", input: "...", output: "..."}`.',
            )
        for command in (self.compile, self.execute):
            program = None if command is None else self.words(command)[0]
            if program not in (None, "warm") and shutil.which(str(program)) is None:
                raise ShunterError(
                    f"the language {self.name} needs {program!r}, which is not here", mend=self.install
                )
        for path in self.paths:
            if not os.path.exists(path):
                raise ShunterError(
                    f"the language {self.name} shows {path}, which is not here", mend=self.install
                )


LANGUAGES = {
    language.name: language
    for language in (
        Language(name="python", filename="main.py", execute="warm {file}",
                 sample=Sample(program="print(int(input()) + 1)", input="6", output="7")),
        Language(name="stack", filename="main.stk", execute="warm /toys/stack.py {file}",
                 sample=Sample(program="read read + print", input="2 5", output="7")),
        Language(name="prefix", filename="main.pre", execute="warm /toys/prefix.py {file}",
                 sample=Sample(program="+ in * in 2", input="3 4", output="11")),
        Language(name="awk", filename="main.awk", execute="awk -f {file}", install="Install awk.",
                 sample=Sample(program="{ print $1 + 1 }", input="6", output="7")),
        Language(name="c", filename="main.c", compile="gcc -O1 -o main {file} -lm", execute="./main",
                 install="Install gcc.",
                 sample=Sample(program='#include <stdio.h>\nint main(void) { puts("7"); }', output="7")),
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
    """What stands in the last fenced block of an answer; None where there is none. In one pass: an answer may
    be anything."""
    lines = answer.split("\n")
    found, begin = None, None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = i + 1
        elif not line[3:].strip():
            found, begin = (begin, i), None
    return None if found is None else "".join(f"{line}\n" for line in lines[found[0] : found[1]])
