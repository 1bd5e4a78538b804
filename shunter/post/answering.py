"""A process that answers question by question, for work that is not safe to do in this one: it may take
longer than anybody waits, and only the main thread of a process can be told that its time is up."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any


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
        line = json.dumps(question).encode() + b"\n"
        for _ in range(2):
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                there = select.select([process.stdout], [], [], self.wait)[0]
                said = process.stdout.readline() if there else b""
            except OSError:
                said = b""
            if said.endswith(b"\n"):
                return json.loads(said)
            self.close()
        raise EOFError

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
