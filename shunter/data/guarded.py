"""Extraction of web pages in a process beside this one, which a page that takes too long ends.

What finds a page's text is others' code, much of it in C, which nothing but the end of its process
interrupts. The system ends it when one page has used its seconds of processor time (so a busy machine alone
loses no page), and a crash, an error or a lack of memory costs one page too. The pages and their texts go
through pipes, as bytes with their lengths.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from typing import IO

from shunter.data import extraction
from shunter.data.extraction import Extracted

SECONDS = 20.0  # of processor time for one page
MEMORY = 4 << 30  # bytes that the process may hold: pages of 8 MiB that were made for it took 1.3 GB
_ASK, _ANSWER = struct.Struct("<Qdq"), struct.Struct("<QQQ")
_METHODS = ("fast", "resiliparse", "trafilatura", "trafilatura-precise")


class Guard:
    """A process that extracts, begun at the first page and again after one that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def extract(self, html: str, method: str, seconds: float = SECONDS) -> Extracted:
        """`extraction.extract`; `late` when the page used so many seconds.

        A page at which the process dies of something else is tried once more: it may not have been its fault,
        as with a lack of memory.
        """
        for _ in range(2):
            found = self._ask(html, method, seconds)
            if isinstance(found, Extracted):
                return found
            if found == signal.SIGPROF:
                return Extracted("", method, f"took more than {seconds:g} s", late=True)
        return Extracted("", method, f"the extractor was ended by signal {found}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(OSError):
                self._process.communicate()
            self._process = None

    def _ask(self, html: str, method: str, seconds: float) -> Extracted | int:
        """What was found, or the signal (else the exit code) of the process's end."""
        process = self._process = self._process or _begun()
        assert process.stdin is not None
        assert process.stdout is not None
        raw = html.encode("utf-8", "surrogatepass")
        try:
            process.stdin.write(_ASK.pack(len(raw), seconds, _METHODS.index(method)))
            process.stdin.write(raw)
            process.stdin.flush()
            sizes = _ANSWER.unpack(_exactly(process.stdout, _ANSWER.size))
            text, by, error = (
                _exactly(process.stdout, size).decode("utf-8", "surrogatepass") for size in sizes
            )
        except (OSError, EOFError):
            self._process = None
            with suppress(OSError):
                process.stdin.close()  # what is held back cannot be written any more
            process.stdout.close()
            code = process.wait()
            if code > 0:  # it did not begin, or has a fault of its own: no page's
                raise RuntimeError(f"the process that extracts ended with code {code}") from None
            return -code
        return Extracted(text, by, error)


_GUARD = Guard()
atexit.register(_GUARD.close)


def extract(html: str, method: str, seconds: float = SECONDS) -> Extracted:
    """`Guard.extract` of this process's guard."""
    return _GUARD.extract(html, method, seconds)


def _begun() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(each for each in sys.path if each)
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )


def _exactly(file: IO[bytes], size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise EOFError
    return found


def main() -> int:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks decides when to stop
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever code it is in
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if most == resource.RLIM_INFINITY or most > MEMORY:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, most))
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what foreign code prints is no answer
    known: set[str] = set()
    while len(head := source.read(_ASK.size)) == _ASK.size:
        size, seconds, number = _ASK.unpack(head)
        html, method = _exactly(source, size).decode("utf-8", "surrogatepass"), _METHODS[number]
        if method not in known:  # loading an extractor is no page's time
            extraction.extract("<p>Some text that has no article in it.</p>", method)
            known.add(method)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = extraction.extract(html, method)
        except Exception as error:  # one page's trouble, as where the process ends; it is told
            found = Extracted("", method, f"{type(error).__name__}: {error}"[:200])
        signal.setitimer(signal.ITIMER_PROF, 0)
        parts = [each.encode("utf-8", "surrogatepass") for each in (found.text, found.by, found.error)]
        sink.write(_ANSWER.pack(*map(len, parts)) + b"".join(parts))
        sink.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
