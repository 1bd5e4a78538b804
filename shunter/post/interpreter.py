"""Tools that run what a model writes: a Python interpreter, in the sandbox that rewards for programs use."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from shunter.data.tokenizer import Tokenizer
from shunter.generate.config import ToolConfig
from shunter.generate.toolbox import TOOLS, Tool, Toolbox
from shunter.post.sandbox.box import Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES, last_program

BETWEEN = " ... "  # stands for what is left out of a long output
WALL, LEAST = 2.0, 1.0  # times its CPU seconds that a program has by the clock, and seconds at least
OUTPUT = 1 << 16  # bytes that a program may write: of more its beginning is told
LENGTH = 16  # characters that are looked at, at each end, for a token that there is room for


class Interpreter:
    """The tool `python`: what a program prints. Each runs by itself, and knows nothing of those before it.
    One that prints without end is ended, and what it has printed by then is told.

    Raises ShunterError where the machine has no sandbox. Calls raise ValueError, of which the model is told,
    for a program that ends with an error, prints nothing, or takes longer than `seconds` of CPU time or twice
    that, at least 1 s, by the clock; RuntimeError after `close`.
    """

    def __init__(self, seconds: float, shorten: Callable[[str], str]) -> None:
        """shorten: an output to as much as a model is to be told."""
        self.box: Sandbox | None = Sandbox(slots=1, output=OUTPUT)
        self.seconds, self.shorten = seconds, shorten

    def __call__(self, code: str) -> str:
        if self.box is None:  # a sandbox would begin anew, and nobody would end it
            raise RuntimeError("the interpreter is closed")
        if code.lstrip().startswith("```"):  # as models write programs
            code = last_program(code.lstrip()) or code
        # All answers wait meanwhile.
        wall = max(LEAST, WALL * self.seconds)
        ended = self.box.run([Program(LANGUAGES["python"], code, [""], self.seconds, wall)])[0][-1]
        if ended.status == "error":
            raise ValueError(
                self.shorten((ended.errors.strip().splitlines() or [f"exit code {ended.code}"])[-1])
            )
        if ended.status == "output" and ended.output.strip():
            return self.shorten(ended.output.strip() + BETWEEN)
        if ended.status != "ok":
            raise ValueError(f"the program was ended: {ended.status}")
        if not ended.output.strip():
            raise ValueError("nothing was printed")
        return self.shorten(ended.output.strip())

    def close(self) -> None:
        """End the sandbox."""
        box, self.box = self.box, None
        if box is not None:
            box.close()


class Tools(Toolbox):
    """A toolbox with all that a configuration names. Use it as a context, or `close` it."""

    def __init__(self, config: ToolConfig, tokenizer: Tokenizer) -> None:
        """Raises ShunterError for a chat template that cannot go on after an answer, and for a tool that
        needs a sandbox where there is none."""
        super().__init__(config, tokenizer, {})
        self.interpreter: Interpreter | None = None
        if "python" in config.tools:
            self.interpreter = Interpreter(config.seconds, self._shortened)
        ready: dict[str, Tool | None] = {**TOOLS, "python": self.interpreter}
        self.tools = {name: tool for name in config.tools if (tool := ready[name]) is not None}

    def __enter__(self) -> Tools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what runs beside."""
        if self.interpreter is not None:
            self.interpreter.close()

    def _shortened(self, text: str) -> str:
        """Its beginning and its end, about as many tokens as there is room for."""
        # To encode all of a long output takes seconds.
        long = len(text) > 2 * LENGTH * self.config.room
        first = self.tokenizer.encode(text[: LENGTH * self.config.room] if long else text)
        if not long and len(first) <= self.config.room:
            return text
        last = self.tokenizer.encode(text[-LENGTH * self.config.room :]) if long else first
        half = max(1, (self.config.room - len(self.tokenizer.encode(BETWEEN))) // 2)
        return self.tokenizer.decode(first[:half]) + BETWEEN + self.tokenizer.decode(last[-half:])
