"""Reads the code blocks of Markdown files, for the tests that execute them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_FENCE = re.compile(r"^```(\S*)[ ]*(.*)$")
_DIRECTIVE = re.compile(r"^<!-- test: (.*) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    language:  the word after the fence; `info` is the rest of that line.
    directive: words of the comment `<!-- test: word key=value -->` on the line above, by key.
    """

    file: Path
    line: int
    language: str
    info: str
    text: str
    directive: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """`docs/errors.md:12`."""
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    """All fenced blocks of a file, in order. An open fence is an error."""
    lines = file.read_text(encoding="utf-8").split("\n")
    at = 0
    while at < len(lines):
        if opened := _FENCE.match(lines[at]):
            end = lines.index("```", at + 1)
            above = next((line for line in reversed(lines[:at]) if line.strip()), "")
            found = _DIRECTIVE.match(above)
            words = re.findall(r'(\w+)(?:=("[^"]*"|\S+))?', found[1]) if found else []
            directive = {key: value.strip('"') for key, value in words}
            text = "\n".join(lines[at + 1 : end]) + "\n"
            yield Block(file, at + 1, opened[1], opened[2], text, directive)
            at = end
        at += 1


def markdown() -> list[Path]:
    """README.md and every page under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
