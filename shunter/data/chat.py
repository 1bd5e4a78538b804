"""Conversations as text: a sandboxed template, and which part the assistant wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shunter.config.errors import ShunterError

Message = Mapping[str, str]  # role, content

# {% generation %} marks what the assistant writes; transformers reads the same marks.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROLES = ("system", "user", "assistant", "tool")

# Stand where a generated part begins and ends while rendering. A message that holds NUL is refused, and where
# a tool or a control token brings one, a tokenizer writes a number after it: no message holds these.
_OPEN, _CLOSE = "\x00gen(", "\x00gen)"


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: the text between, within marks."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


def now() -> datetime:
    """The moment that a template is told by strftime_now."""
    return datetime.now()


def _tojson(value: Any, indent: int | None = None, **more: Any) -> str:
    """JSON as it is. Jinja's own filter writes for web pages, with `<` and quotes escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **more)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    # A template comes with a model: a program of a stranger's. It can read, loop and print, no more.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    # What transformers gives templates, so that those of published models render as they do there.
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ShunterError(f"the chat template is not valid: {error}") from error


def check(messages: Any) -> list[dict[str, str]]:
    """A conversation as it must be, or a ShunterError that says what is wrong."""
    if not isinstance(messages, list) or not messages:
        raise ShunterError("messages must be a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ShunterError(f"message {index} has no text under 'content'")
        if message.get("role") not in ROLES:
            raise ShunterError(
                f"message {index} has role {message.get('role')!r}, not one of {', '.join(ROLES)}"
            )
        if "\x00" in message["content"]:
            raise ShunterError(f"message {index} holds a NUL character")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def turn(messages: Sequence[Message]) -> int:
    """Where the assistant's last turn begins, with the tools asked inside it; 0 where there is none."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    while last > 0:
        before = last - 1
        while before > 0 and messages[before]["role"] == "tool":
            before -= 1
        if before == last - 1 or messages[before]["role"] != "assistant":
            break
        last = before
    return last


def asked(messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], str | None]:
    """What comes before the assistant's last turn, and what it says at its end.

    Of a conversation that ends before the assistant has answered: all of it, and None. Nothing is asked where
    nobody but the assistant speaks.
    """
    if messages and messages[-1]["role"] != "assistant":
        return messages, None
    said = messages[-1]["content"] if messages else None
    return messages[: turn(messages)], said


def after_answer(
    template: str, messages: Sequence[Message], specials: Mapping[str, Any] | None = None
) -> str:
    """The text that stands between what an assistant wrote and where it writes on, with `messages` between.

    It begins after the last character that the template marks as the assistant's, which is the token that
    ends an answer. Raises ShunterError where the template writes a conversation otherwise when more follows.
    """
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parts = list(pieces(template, before, specials))
    end = max(i + 1 for i, (_, written) in enumerate(parts) if written)
    begin = "".join(text for text, _ in parts[:end])
    whole = render(template, [*before, *messages], True, specials)
    if not whole.startswith(begin):
        raise ShunterError(
            "the chat template writes an answer otherwise when more follows, so a conversation cannot go on",
            mend="Use a template whose conversation begins like the shorter one.",
        )
    return whole[len(begin) :]


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    specials: Mapping[str, Any] | None = None,
) -> str:
    """The whole text of a conversation."""
    return _marked(template, messages, add_generation_prompt, specials).replace(_OPEN, "").replace(_CLOSE, "")


def pieces(
    template: str, messages: Sequence[Message], specials: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, bool]]:
    """The text in pieces, each with whether the assistant wrote it. Joined, they are `render`'s text."""
    text = _marked(template, messages, False, specials)
    if _OPEN not in text:
        raise ShunterError(
            "the chat template does not mark what the assistant writes",
            mend="Put {% generation %} and {% endgeneration %} around the assistant's content in it.",
        )
    written = False
    for part in re.split(f"({re.escape(_OPEN)}|{re.escape(_CLOSE)})", text):
        if part in (_OPEN, _CLOSE):
            written = part == _OPEN
        elif part:
            yield part, written


def _marked(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    specials: Mapping[str, Any] | None,
) -> str:
    names = {}
    for name, value in (specials or {}).items():
        # Older folders write a token as an object with its text under "content".
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            names[name] = text
    try:
        return _compile(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **names
        )
    except jinja2.TemplateError as error:
        raise ShunterError(f"the chat template refuses the conversation: {error}") from error
