"""Threads beside the one that learns: one hears what is written, one grades it, while the policy learns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shunter.post.store import Closed, SampleStore

NAME = "beside the learner"  # of each thread
NEVER = 1e8  # seconds: who waits so long is told otherwise that it is over


class Meanwhile:
    """Works that are done again and again beside the thread that has begun them, until `end`.

    What one of them fails with ends that one, wakes whoever waits for the store, and is raised by `look`."""

    def __init__(self, store: SampleStore) -> None:
        self.store = store
        self._failure: BaseException | None = None
        self._over = False
        self._threads: list[threading.Thread] = []

    def begin(self, work: Callable[[], object]) -> None:
        """work: a part of it, which returns when that is done; it may wait for the store."""
        thread = threading.Thread(target=self._run, args=(work,), name=NAME, daemon=True)
        self._threads.append(thread)
        thread.start()

    def look(self) -> None:
        """Raise what a work has failed with."""
        if self._failure is not None:
            raise self._failure

    def over(self) -> None:
        """What fails from now on is of no interest; nothing more is begun."""
        self._over = True
        self.store.close()

    def end(self, seconds: float) -> None:
        """Wait until all have ended, or so many seconds; what is in the midst of something ends with the
        process."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self, work: Callable[[], object]) -> None:
        try:
            while not self._over:
                work()
        except Closed:
            pass
        except BaseException as error:
            if not self._over:
                self._failure = self._failure or error
                self.store.fail(error)
