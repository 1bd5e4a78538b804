"""Tools that a model may ask between two of its turns, and the tokens in which it is told what they say.

A call is text that the model wrote, with which its turn ends: a note such as `<<12*7>>`, or JSON such as
`<tool_call>{"name": "calculator", "arguments": {"expression": "12*7"}}</tool_call>`. What the model wrote
stays as it is, token by token; what a tool says is put after it in tokens of its own, which are not learnt
from.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from shunter.config.errors import ShunterError
from shunter.data.tokenizer import Tokenizer
from shunter.generate.config import ToolConfig
from shunter.generate.rollout import Rollout

Tool = Callable[[str], str]  # what is asked -> what it says; raises ValueError for what it cannot do

_JSON = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>\s*\Z", re.DOTALL)
_WORD = re.compile(r"\s*(\d+(?:\.\d+)?|[-+*/()])")
LONGEST = 100  # characters of an expression
DIGITS = 30  # of a number


def calculator(expression: str) -> str:
    """The value of an expression of numbers, + - * / and brackets: whole, or with six decimals at most.

    Raises ValueError for anything else.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters")
    words, at = [], 0
    text = expression.rstrip()
    while at < len(text):
        found = _WORD.match(text, at)
        if found is None:
            raise ValueError(f"no number or operator: {text[at : at + 10].strip()!r}")
        words.append(found[1])
        at = found.end()
    value = _sum(words)
    if words:
        raise ValueError(f"{words[0]!r} is too much")
    if abs(value) >= 10**DIGITS:
        raise ValueError(f"more than {DIGITS} digits")
    if value.denominator == 1:
        return str(value.numerator)
    millionths = round(abs(value) * 10**6)  # exact: a float has no room for so many digits
    whole, part = divmod(millionths, 10**6)
    sign = "-" if value < 0 and millionths else ""
    return f"{sign}{whole}.{part:06d}".rstrip("0").rstrip(".")


def _sum(words: list[str]) -> Fraction:
    """Takes what it has read from the front of `words`, as the two below."""
    value = _product(words)
    while words and words[0] in "+-":
        sign = words.pop(0)
        other = _product(words)
        value = value + other if sign == "+" else value - other
    return value


def _product(words: list[str]) -> Fraction:
    value = _factor(words)
    while words and words[0] in "*/":
        times = words.pop(0) == "*"
        other = _factor(words)
        if not times and other == 0:
            raise ValueError("division by zero")
        value = value * other if times else value / other
    return value


def _factor(words: list[str]) -> Fraction:
    if not words:
        raise ValueError("something is missing at the end")
    word = words.pop(0)
    if word == "-":
        return -_factor(words)
    if word == "(":
        value = _sum(words)
        if not words or words.pop(0) != ")":
            raise ValueError("a bracket is not closed")
        return value
    if not word[0].isdigit():
        raise ValueError(f"{word!r} stands where a number should")
    return Fraction(word)


def _code(arguments: object) -> str | None:
    """The program in a call's arguments: `code`, or the only text among them; None where there is none."""
    if not isinstance(arguments, dict):
        return arguments if isinstance(arguments, str) else None
    if isinstance(code := arguments.get("code"), str):
        return code
    texts = [value for value in arguments.values() if isinstance(value, str)]
    return texts[0] if len(texts) == 1 else None


TOOLS: Mapping[str, Tool] = {"calculator": calculator}


class Toolbox:
    """What an engine asks when a model's turn has ended (`RolloutEngine(reply=...)`).

    calls, failed: how many there were since they were last taken, and those that a tool could not answer.
    """

    def __init__(
        self, config: ToolConfig, tokenizer: Tokenizer, tools: Mapping[str, Tool] | None = None
    ) -> None:
        """tools: by name; without, those of the configuration, which must be functions of this module; empty:
        what others are asked is counted here, and nothing is answered.

        Raises ShunterError for a chat template that cannot go on after an answer, ValueError for a tool of
        the configuration that is no function."""
        self.config, self.tokenizer = config, tokenizer
        if tools is None:
            if others := [name for name in config.tools if name not in TOOLS]:
                raise ValueError(f"{others[0]} is no function: give the tools")
            tools = {str(name): TOOLS[name] for name in config.tools}
        self.tools = tools
        ids, wrote = tokenizer.encode_chat(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
        self.closing = ids[max(i for i, each in enumerate(wrote) if each)]
        self.calls = self.failed = 0
        self._counting = threading.Lock()
        self._said([{"role": "tool", "content": "1"}])

    def __call__(self, done: Rollout) -> list[int] | None:
        """The tokens to go on after, or None where the model asked nothing, or has asked often enough.
        Where nothing may follow (its `stop_reason` is `length`) no tool is asked, and the tokens are none.
        Raises RuntimeError where there are no tools."""
        if not self.tools:
            raise RuntimeError("this toolbox counts what others are asked, and answers nothing")
        if done.ids[-1] != self.closing or done.turns > self.config.most:
            return None
        asked = self.asked(self.last(done))
        if asked is None:
            return None
        if done.stop_reason == "length":
            return []
        self.count(1, 0)
        return self._said([{"role": "tool", "content": self._answer(*asked)}])

    def close(self) -> None:
        """End what runs beside: of functions nothing."""

    def count(self, calls: int, failed: int) -> None:
        """So many more, from any thread."""
        with self._counting:
            self.calls += calls
            self.failed += failed

    def taken(self) -> tuple[int, int]:
        """Calls and failures since this was last asked."""
        with self._counting:
            found, self.calls, self.failed = (self.calls, self.failed), 0, 0
            return found

    def last(self, done: Rollout) -> str:
        """The text of the model's last turn, without the token that ended it."""
        begin = max((i + 1 for i, wrote in enumerate(done.wrote) if not wrote), default=0)
        ids = done.ids[begin:]
        ended = done.stop_reason == "stop" or (ids and ids[-1] == self.closing)
        return self.tokenizer.decode(ids[:-1] if ended else ids)

    def asked(self, text: str) -> tuple[str, str] | None:
        """Name of the tool and what it is asked, by the text of a turn; None where there is no call.

        A call that cannot be read has the name `""`, and what is wrong with it.
        """
        if self.config.form == "note":
            found = re.search(r"<<([^<>\n]*)>>\s*\Z", text)
            return None if found is None else (next(iter(self.tools)), found[1])
        call = _JSON.search(text)
        if call is None:
            return None
        try:
            values = json.loads(call[1])
            name, arguments = values["name"], values.get("arguments", {})
        except (ValueError, KeyError, AttributeError, RecursionError):
            return "", "the call is no JSON object with name and arguments"
        if name == "python" and name in self.config.tools:
            code = _code(arguments)
            return ("", "the call has no code") if code is None else (name, code)
        if isinstance(arguments, dict) and len(arguments) == 1:
            arguments = next(iter(arguments.values()))
        return str(name), arguments if isinstance(arguments, str) else json.dumps(arguments)

    def _answer(self, name: str, what: str) -> str:
        try:
            if name not in self.tools:
                raise ValueError(what if not name else f"there is no tool {name[:40]!r}")
            return self.tools[name](what)
        except ValueError as error:  # the model is told, and may ask again
            self.count(0, 1)
            return f"error: {error}"

    def _said(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        ids = self.tokenizer.encode_between(messages)
        if not ids:
            raise ShunterError("the chat template writes nothing after an answer", where="tools")
        return ids
