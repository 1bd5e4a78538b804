"""A YAML parser's complaint as one sentence with its line."""

from __future__ import annotations

import re

import yaml
from yaml.error import Mark
from yaml.reader import ReaderError

from shunter.config.errors import ShunterError

_SENTENCES: dict[str, tuple[str, str | None]] = {
    "mapping values are not allowed in this context": (
        "a ':' where no key can stand",
        "Quote text that holds ': ', and indent keys of one mapping alike.",
    ),
    "could not find expected ':'": (
        "a line that is neither 'key: value' nor a list item",
        "Write 'key: value', or quote text of several lines.",
    ),
    "did not find expected key": ("a key is not aligned with its neighbours", "Indent them alike."),
    "did not find expected '-' indicator": (
        "a line at the indentation of a list does not begin with '- '",
        "Begin it with '- ', or indent it otherwise.",
    ),
    "did not find expected ',' or ']'": ("a '[' is not closed", "Add ']', or a missing comma."),
    "did not find expected ',' or '}'": ("a '{' is not closed", "Add '}', or a missing comma."),
    "found unexpected end of stream": ("a quote is not closed", "Close the quote."),
    "found unknown escape character": (
        "an unknown escape after a backslash in double quotes",
        "Use single quotes, or double the backslash.",
    ),
}
_CHARACTER = "found character that cannot start any token"
# What is opened and never closed is noticed only at the end: the line that opens it is named.
_NAMED_BY_CONTEXT = re.compile("scalar|flow|simple key")


def explain(error: yaml.YAMLError, text: str, path: str) -> ShunterError:
    """The ShunterError for what the parser found wrong in `text`."""
    if isinstance(error, ReaderError):
        return _unreadable(error, text, path)
    if not isinstance(error, yaml.MarkedYAMLError):
        return ShunterError(str(error).splitlines()[0], where=path)
    mark, problem = error.problem_mark or error.context_mark, error.problem or "not valid YAML"
    what, mend = _SENTENCES.get(problem, (problem, None))
    if problem == _CHARACTER and mark:
        what, mend = _character(text, mark)
    elif (
        error.context_mark
        and problem in _SENTENCES
        and "escape" not in problem
        and _NAMED_BY_CONTEXT.search(str(error.context))
    ):
        mark = error.context_mark
    return ShunterError(what, where=f"{path}:{mark.line + 1}" if mark else path, mend=mend)


def _unreadable(error: ReaderError, text: str, path: str) -> ShunterError:
    # libyaml counts bytes of UTF-8, where the Python reader counts characters.
    line = text.encode()[: error.position or 0].count(b"\n") + 1
    code = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "\0")
    return ShunterError(
        f"the control character U+{code:04X} is not allowed",
        where=f"{path}:{line}",
        mend="Remove it, or write it as an escape in double quotes.",
    )


def _character(text: str, mark: Mark) -> tuple[str, str]:
    lines = text.split("\n")
    found = lines[mark.line][mark.column : mark.column + 1] if mark.line < len(lines) else ""
    if found == "\t":
        return "a tab is used for indentation", "Indent with spaces."
    return f"a value cannot begin with '{found}'", "Quote the text."
