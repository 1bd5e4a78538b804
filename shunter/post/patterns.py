"""Regular expressions with a limit on their time, in a process of their own. Run as a file, this is that
process: standard library alone.

A pattern may take longer than anybody waits on a text that a model wrote. A thread cannot be ended in Python,
and only the main thread of a process can be told that its time is up, so there is one whose main thread does
nothing else.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

if __name__ != "__main__":
    from shunter.post.answering import Answering

SECONDS = 1.0  # of CPU time for a text
WAIT = 30.0  # by the clock: then the process itself is given up


class Patterns:
    """Matches whole texts, one by one, in a process that is there from the first one on."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.answering = Answering(["-I", "-S", __file__], WAIT + seconds)

    def match(self, pattern: str, text: str) -> bool | str:
        """Whether the whole text matches, or a sentence on why that is not known."""
        (found,) = self.match_all([(pattern, text)])
        return found

    def match_all(self, pairs: Sequence[tuple[str, str]]) -> list[bool | str]:
        """Of each pattern and text, what `match` says."""
        found = self.answering.ask_all([[pattern, text, self.seconds] for pattern, text in pairs])
        return ["the process that matches patterns gave no answer" if one is None else one for one in found]

    def close(self) -> None:
        """End the process."""
        self.answering.close()


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
