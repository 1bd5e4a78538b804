"""A program in the sandbox, in one line, and what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.post.sandbox import jail
from shunter.post.sandbox.box import Case, Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES, Language

PYTHON = LANGUAGES["python"]
WHO = "import os\nprint(os.getuid())"
# How many children a program can have.
COUNT = (
    "import os\nn = 0\ntry:\n  while n < 99:\n    if os.fork() == 0: os._exit(0)\n    n += 1\n"
    "except OSError: print(n)"
)


def run(box: Sandbox, code: str, *inputs: str, lang: Language = PYTHON, seconds: float = 1.0) -> list[Case]:
    """Its cases."""
    return box.run([Program(lang, code, inputs or ("",), seconds)])[0]


def alive(user: int) -> int:
    """How many processes have an id of this user's block."""
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found += path.stat().st_uid // jail.USERS == user // jail.USERS
        except OSError:
            continue
    return found


@contextmanager
def or_skip() -> Iterator[None]:
    """Where a machine allows no sandbox, a test is skipped that opens one inside, and tells why."""
    try:
        yield
    except ShunterError as refused:
        pytest.skip(str(refused))
