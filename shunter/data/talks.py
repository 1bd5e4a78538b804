"""Conversations: a person's own in the usual forms, and ones made from documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.config.seed import derive_seed
from shunter.data import chat
from shunter.data.sources import Problem, Record, SourceConfig, contents

# (question key, answer key) of the flat forms, in the order in which they are looked for.
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))
_WORD = re.compile(r"\s+\S*$")


@dataclass(frozen=True)
class Talk:
    """A conversation. `task` groups conversations for scores and tables. columns: what else its record tells
    of it, as JSON values; they stand beside `messages` in its line."""

    id: str
    task: str
    messages: list[dict[str, str]]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The JSON line that stands for it."""
        told = {"id": self.id, "task": self.task, "messages": self.messages, **self.columns}
        return json.dumps(told, ensure_ascii=False)

    @property
    def digest(self) -> bytes:
        """Of the messages alone."""
        return hashlib.blake2b(json.dumps(self.messages).encode(), digest_size=16).digest()


class Columns:
    """Fields of records that stay beside conversations. kept: how many records had each."""

    def __init__(self, names: Sequence[str]) -> None:
        self.kept = dict.fromkeys(names, 0)
        self.seen: set[str] = set()  # fields of all records

    def of(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Those that a record has, and that are not null. Raises ShunterError for what JSON cannot hold."""
        self.seen |= fields.keys()
        found = {name: fields[name] for name in self.kept if fields.get(name) is not None}
        for name, value in found.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ShunterError(f"the field {name!r} is no JSON value ({error})") from None
            self.kept[name] += 1
        return found

    def check(self) -> None:
        """Raise ShunterError for one that no record has."""
        for name, count in self.kept.items():
            if not count:
                near = nearest(name, self.seen)
                known = ", ".join(sorted(self.seen)) or "none at all"
                raise ShunterError(
                    f"no record has the field {name!r} of `columns`",
                    mend=f"Did you mean {near}?" if near else f"There are: {known}.",
                )


def own(
    source: SourceConfig,
    base: Path,
    report: Callable[[Problem], None],
    forms: dict[str, int],
    columns: Columns | None = None,
    unanswered: bool = False,
) -> Iterator[Talk]:
    """A source's conversations; `forms` counts by which form each was recognised.

    columns: fields to keep. unanswered: questions that nobody answers are conversations too.
    """
    row = 0
    for item in contents(source, base, report, whole=True):
        if not isinstance(item, Record):
            raise ShunterError(
                f"source {source.label!r} holds plain text, not conversations",
                mend="Give JSONL or Parquet with `messages`, or `prompt` and `completion`.",
            )
        try:
            form, messages = _recognise(item.fields, unanswered)
            kept = {} if columns is None else columns.of(item.fields)
        except ShunterError as error:
            report(Problem(item.file, item.line, error.what, "skipped"))
            continue
        forms[form] = forms.get(form, 0) + 1
        yield Talk(f"{source.label}:{row}", source.label, messages, kept)
        row += 1


def _recognise(fields: Mapping[str, Any], unanswered: bool = False) -> tuple[str, list[dict[str, str]]]:
    """The messages of a record and the form in which they stood."""
    if "messages" in fields:
        messages = chat.check(fields["messages"])
        if not unanswered and not any(m["role"] == "assistant" for m in messages):
            raise ShunterError("the assistant says nothing in it (`unanswered: true` keeps such, for `rl`)")
        if unanswered and all(m["role"] in ("assistant", "system") for m in messages):
            raise ShunterError("nobody asks anything in it")
        return "messages", messages
    for question, answer in _PAIRS:
        if question in fields and answer in fields:
            asked, answered = fields[question], fields[answer]
            if isinstance(asked, list) and isinstance(answered, list):
                return f"{question} and {answer}", chat.check([*asked, *answered])
            pair = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            return f"{question} and {answer}", chat.check(pair)
    for question in dict.fromkeys(question for question, _ in _PAIRS):
        if unanswered and question in fields:
            asked = fields[question]
            return question, chat.check(
                asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
            )
    known = ", ".join(["messages", *(f"{a} and {b}" for a, b in _PAIRS)])
    raise ShunterError(f"none of these fields: {known}")


def continuations(
    name: str, text: str, count: int, prompt_chars: int, answer_chars: int, seed: int
) -> Iterator[Talk]:
    """`count` places of a document, each as a request to go on from there and how it goes on.

    Places are cut at spaces. A document too short for one place gives none.
    """
    need = prompt_chars + answer_chars
    places = max(0, len(text) - need)
    for number in range(count if places else 0):
        at = derive_seed(seed, "continuation", name, number) % places
        at = text.find(" ", at) + 1 if at else 0
        prompt = _WORD.sub("", text[at : at + prompt_chars])
        answer = _WORD.sub("", text[at + len(prompt) : at + len(prompt) + answer_chars]).strip()
        if not prompt.strip() or not answer:
            continue
        request = f"Continue this address: {prompt.strip()}"
        messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        yield Talk(f"{name}#{number}", "continuation", messages)
