"""Requests to a running run: signals, and files that `shunter watch` writes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOP = "SHUNTER_STOP"  # a variable that holds a file's name
# SIGHUP: the terminal was closed, or the connection to it was lost.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunStopped(KeyboardInterrupt):
    """The run saved and stopped as it was asked to; the same command continues. `code` is its exit code."""

    def __init__(self, job: str, code: int) -> None:
        self.job, self.code = job, code
        super().__init__(f"stopped at {job}")


class RunControl:
    """What work polls between two steps (see `job.Control`).

    The file that SHUNTER_STOP names asks for a stop too: a batch system's script can make one.
    elsewhere: gives the signal that another process of the run has heard, None while there is none.
    """

    def __init__(self, folder: Path, elsewhere: Callable[[], int | None] | None = None) -> None:
        self._stop, self._save = folder / "stop", folder / "save"
        self.signal: int | None = None
        self._elsewhere = elsewhere
        self._heard: int | None = None

    def stop_requested(self) -> bool:
        """True once the run shall save and stop."""
        wanted = os.environ.get(STOP)
        if self.signal is not None or self._stop.exists() or (wanted and os.path.exists(wanted)):
            return True
        if self._heard is None and self._elsewhere is not None:
            self._heard = self._elsewhere()
        return self._heard is not None

    def take_save_request(self) -> bool:
        """True once for each request."""
        try:
            self._save.unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def code(self) -> int:
        """Exit code of a stop: 128 + signal; a stop by `shunter watch` counts as SIGTERM."""
        return 128 + (self.signal or self._heard or signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator[RunControl]:
        """Take SIGINT, SIGTERM and SIGHUP as requests to stop; a second one interrupts at once.

        A SIGHUP that is ignored stays so: that is what `nohup` asks for. Outside the main thread, where
        Python delivers no signals, only the files are heard.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGHUP:  # one closed terminal may send several
                return
            raise KeyboardInterrupt
        self.signal = number
        # print is not safe inside a handler: it may interrupt another print. The terminal may be gone.
        with suppress(OSError):
            os.write(2, b"\nstopping: the job saves its state first; once more stops at once\n")


def request(folder: Path, name: str) -> None:
    """Ask the run whose control folder this is to `save` or to `stop`."""
    (folder / name).write_text("")
