"""A program in the sandbox, in one line."""

from __future__ import annotations

from shunter.post.sandbox.box import Case, Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES, Language

PYTHON = LANGUAGES["python"]
# How many children a program can have.
COUNT = (
    "import os\nn = 0\ntry:\n  while n < 99:\n    if os.fork() == 0: os._exit(0)\n    n += 1\n"
    "except OSError: print(n)"
)


def run(box: Sandbox, code: str, *inputs: str, lang: Language = PYTHON, seconds: float = 1.0) -> list[Case]:
    """Its cases."""
    return box.run([Program(lang, code, inputs or ("",), seconds)])[0]
