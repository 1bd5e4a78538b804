"""A process that answers question by question, for work that is not safe to do in this one: it may take
longer than anybody waits, and only the main thread of a process can be told that its time is up."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

# Bytes of questions that are asked together: a pipe holds them, so that to ask never waits for an answer.
ON_THEIR_WAY = 1 << 15


class Answering:
    """Sends a JSON value and reads one. The process starts with the first question, and ends with `close` or
    with the last reference to this. One that is killed, or silent for too long, is replaced, once a question.

    Raises EOFError where the second one gives no answer either. For one thread at a time.
    """

    def __init__(
        self, command: Sequence[str], wait: float, environment: Mapping[str, str] | None = None
    ) -> None:
        """command: after the name of this Python. wait: seconds by the clock for an answer."""
        self.command, self.wait, self.environment = command, wait, environment
        self.process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[[subprocess.Popen[bytes]], Answering] | None = None

    def ask(self, question: Any) -> Any:
        """The answer to a question."""
        (found,) = self.ask_all([question])
        if found is None:
            raise EOFError
        return found

    def ask_all(self, questions: Sequence[Any]) -> list[Any]:
        """The answer to each, in order; None where the second process gives none either. Many are on their
        way together, so that neither side waits for the other after each."""
        lines = [json.dumps(question).encode() + b"\n" for question in questions]
        found: list[Any] = []
        again = False  # whether the next one has been asked before
        while (begin := len(found)) < len(lines):
            end, size = begin + 1, len(lines[begin])
            while end < len(lines) and (size := size + len(lines[end])) <= ON_THEIR_WAY:
                end += 1
            answers = self._exchange(lines[begin:end])
            found += answers
            if not answers and again:
                found.append(None)
            again = len(answers) < end - begin and (bool(answers) or not again)
        return found

    def _exchange(self, lines: Sequence[bytes]) -> list[Any]:
        """Answers to the first of these, up to one that has none; then the process is ended."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        said, source = b"", process.stdout.fileno()
        try:
            process.stdin.write(b"".join(lines))
            process.stdin.flush()
            while said.count(b"\n") < len(lines) and select.select([source], [], [], self.wait)[0]:
                more = os.read(source, 1 << 16)
                if not more:
                    break
                said += more
        except OSError:
            pass
        answers = [json.loads(line) for line in said.split(b"\n")[:-1]]
        if len(answers) < len(lines):
            self.close()
        return answers

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end()
        self.process = self._end = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env=None if self.environment is None else dict(self.environment),
            )
            self._end = weakref.finalize(self, _ended, self.process)
        return self.process


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
