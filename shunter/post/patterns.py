"""Regular expressions with a limit on their time, in a process of their own. Run as a file, this is that
process: standard library alone.

A pattern may take longer than anybody waits on a text that a model wrote. A thread cannot be ended in Python,
and only the main thread of a process can be told that its time is up, so there is one whose main thread does
nothing else.
"""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
import weakref
from types import FrameType

SECONDS = 1.0  # of CPU time for a text
WAIT = 30.0  # by the clock: then the process itself is given up


class Patterns:
    """Matches whole texts, one by one. The process starts with the first one, and ends with `close` or with
    the last reference to this."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[[subprocess.Popen[bytes]], Patterns] | None = None

    def match(self, pattern: str, text: str) -> bool | str:
        """Whether the whole text matches, or a sentence on why that is not known."""
        for _ in range(2):
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([pattern, text, self.seconds]).encode() + b"\n")
                process.stdin.flush()
                there = select.select([process.stdout], [], [], WAIT + self.seconds)[0]
                said = process.stdout.readline() if there else b""
            except OSError:
                said = b""
            if said:
                found: bool | str = json.loads(said)
                return found
            self.close()  # it was killed, or is stuck: another one, once
        return "the process that matches patterns gave no answer"

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-I", "-S", __file__]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
            self._end = weakref.finalize(self, _ended, self._process)
        return self._process


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


class _Late(Exception):
    pass


def _late(number: int, frame: FrameType | None) -> None:
    raise _Late


def _matched(pattern: str, text: str, seconds: float) -> bool | str:
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return re.fullmatch(pattern, text, re.DOTALL) is not None
    except _Late:
        return f"the pattern took more than {seconds:g} s of CPU time"
    except (re.error, RecursionError, OverflowError) as error:
        return f"the pattern is no regular expression ({error})"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def _serve() -> None:
    signal.signal(signal.SIGVTALRM, _late)
    for line in sys.stdin.buffer:
        found = _matched(*json.loads(line))
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
