"""What the controller knows of workers outside its process: their answers, their silence, their failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.post.roles.shelf import Reader
from shunter.post.roles.source import Reach

if TYPE_CHECKING:
    from shunter.post.roles.flow import Count

GRACE = 1.0  # seconds in which the cause of a failure may be told after a consequence of it
RERUN = "Run the same command again: it continues from the last checkpoint."


class Overseer:
    """Half of a backend. The other half says how a message goes (`_hand`), which worker has come to its end
    (`_killed`), how that is told (`_ended`), and ends them (`close`)."""

    patience = GRACE  # seconds in which the end of a worker may be told after a consequence of it

    def __init__(
        self, done: Callable[[int, Mapping[str, Any]], None], doing: Callable[[int], str], timeout: float
    ) -> None:
        from shunter.post.roles.flow import Count

        self.count: Count = Count()
        self._done, self._doing, self._timeout = done, doing, timeout
        self._names: dict[int, str] = {}
        self._changed = threading.Condition()
        self._failures: list[dict[str, Any]] = []
        self._final: Exception | None = None  # what came of them
        self._heard = time.monotonic()
        self._closing = False
        self._reader = Reader({}, {}, timeout)

    def _hand(self, worker: int, message: dict[str, Any]) -> int:
        raise NotImplementedError

    def _killed(self) -> int | None:
        raise NotImplementedError

    def _ended(self, worker: int) -> Exception:
        raise NotImplementedError

    def close(self) -> None:
        """End all workers; nothing of them is left."""
        raise NotImplementedError

    def hear(self, worker: int, answer: Mapping[str, Any], size: int) -> None:
        """An answer of so many bytes, from whatever thread: {"done": ...} or {"failed": ...}."""
        with self._changed:
            self.count.control += size
            self._heard = time.monotonic()
            if "done" in answer:
                self._done(worker, answer)
            elif not self._closing:
                self._failures.append({**answer, "worker": worker})
            self._changed.notify_all()

    def send(self, worker: int, message: dict[str, Any]) -> None:
        """Raises ShunterError where a worker has failed."""
        if self._failures:
            self._fail()
        size = self._hand(worker, message)
        with self._changed:
            self.count.control += size
            self._heard = time.monotonic()

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        with self._changed:
            while not ready() and not self._failures:
                left = self._heard + self._timeout - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
            else:
                if not self._failures:
                    return
        if self._failures:
            self._fail()
        silent = [worker for worker in self._names if self._doing(worker) != "no call"]
        told = ", ".join(f"{self._names[worker]} in {self._doing(worker)}" for worker in silent[:4])
        self.close()
        raise ShunterError(
            f"no word from {told} for {self._timeout:g} s",
            mend="Raise the timeout if a call may take so long.",
        )

    def _fail(self) -> None:
        """Raise the first failure that is no consequence of another, after ending all workers."""
        if self._final is None:
            try:
                self._final = self._cause()
            finally:
                self.close()
        raise self._final

    def _cause(self) -> Exception:
        own = any(not it.get("ended") and not it["lost"] for it in list(self._failures))
        until = time.monotonic() + (GRACE if own else self.patience)
        while time.monotonic() < until and self._killed() is None:
            time.sleep(0.02)
        killed = self._killed()
        failures = list(self._failures)
        told = [it for it in failures if not it.get("ended")]
        first = [it for it in told if not it["lost"]]
        if killed is not None:
            return self._ended(killed)
        if first or (told and not any(it.get("ended") for it in failures)):
            return self._told((first or told)[0])
        return self._ended(next(it["worker"] for it in failures if it.get("ended")))

    def _told(self, failure: Mapping[str, Any]) -> Exception:
        worker = failure["worker"]
        call = self._doing(worker)
        name = self._names[worker] if call == "no call" else f"{self._names[worker]}, {call}"
        if failure["user"]:
            return ShunterError(failure["what"], where=failure["where"] or name, mend=failure["mend"])
        return RuntimeError(f"{name} failed:\n{failure['traceback']}")

    def _at(self, worker: int) -> str:
        """What a worker was at when it ended."""
        call = self._doing(worker)
        return "between two calls" if call == "no call" else f"in {call}"

    def reach(self) -> Reach:
        """Reads results, and counts what comes."""
        return _Counting(self._reader, self.count)


class _Counting:
    """The controller's own reading, counted."""

    def __init__(self, reader: Reader, count: Count) -> None:
        self._reader, self._count = reader, count

    def extent(self, part: Any) -> Any:
        return self._counted(lambda: self._reader.extent(part))

    def read(self, part: Any, begin: int | None = None, end: int | None = None) -> Any:
        return self._counted(lambda: self._reader.read(part, begin, end))

    def _counted(self, read: Callable[[], Any]) -> Any:
        before = self._reader.moved
        found = read()
        self._count.fetched += self._reader.moved - before
        return found
