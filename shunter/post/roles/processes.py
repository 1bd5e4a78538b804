"""Workers as processes of this machine. One that ends or fails ends all, and is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.post.roles import wire
from shunter.post.roles.shelf import Reader
from shunter.post.roles.source import Reach

if TYPE_CHECKING:
    from shunter.post.roles.flow import Count, Pool

START = 300.0  # seconds that workers get to begin
GRACE = 1.0  # seconds in which the cause of a failure may be told after a consequence of it
LAST = 4000  # characters of a worker's output that are shown when it ends without a word


class Processes:
    """A process for each worker, joined by sockets in a folder that this user alone may enter."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        work: Path,
        done: Callable[[int, Mapping[str, Any]], None],
        doing: Callable[[int], str],
        timeout: float,
        threads: int,
        exact: bool,
    ) -> None:
        """Raises ShunterError for a worker that does not begin."""
        from shunter.post.roles.flow import Count

        self.count: Count = Count()
        self._done, self._doing, self._timeout = done, doing, timeout
        self._names: dict[int, str] = {}
        self._changed = threading.Condition()
        self._failures: list[dict[str, Any]] = []
        self._heard = time.monotonic()
        self._closing = False
        self._folder = Path(tempfile.mkdtemp(prefix="shunter-"))  # its mode lets nobody else in
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._links: dict[int, socket.socket] = {}
        count = sum(len(pool.workers) for pool in pools.values())
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._folder / "control.sock"))
        listener.listen(count)
        try:
            for pool in pools.values():
                for rank, worker in enumerate(pool.workers):
                    self._names[worker] = f"rank {rank} of the pool {pool.name}"
                    request = {
                        "number": worker, "count": count, "pool": pool.name, "rank": rank,
                        "size": len(pool.workers), "folder": str(self._folder), "work": str(work),
                        "timeout": timeout, "threads": threads, "exact": exact,
                    }  # fmt: skip
                    self._start(worker, request, threads)
            self._greet(listener, count)
        except BaseException:
            self.close()
            raise
        finally:
            listener.close()
        for worker, link in self._links.items():
            threading.Thread(target=self._listen, args=(worker, link), daemon=True).start()
        paths = {worker: self._folder / f"{worker}.sock" for worker in self._processes}
        self._reader = Reader({}, paths, timeout)

    def _start(self, worker: int, request: Mapping[str, Any], threads: int) -> None:
        path = self._folder / f"request-{worker}.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        }
        with (self._folder / f"output-{worker}.txt").open("wb") as output:
            # A session of its own: Ctrl-C is for the controller, which then ends the workers.
            self._processes[worker] = subprocess.Popen(
                [sys.executable, "-m", "shunter.post.roles.worker", str(path)], stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                preexec_fn=elastic.die_with_parent,
            )  # fmt: skip

    def _greet(self, listener: socket.socket, count: int) -> None:
        listener.settimeout(0.2)
        until = time.monotonic() + START
        while len(self._links) < count:
            try:
                link, _ = listener.accept()
            except TimeoutError:
                for worker, process in self._processes.items():
                    if worker not in self._links and process.poll() is not None:
                        raise self._ended(worker) from None
                if time.monotonic() > until:
                    raise ShunterError(f"not all workers began within {START:g} s") from None
                continue
            link.settimeout(None)
            hello, _ = wire.receive(link)
            self._links[hello["number"]] = link

    def _listen(self, worker: int, link: socket.socket) -> None:
        while True:
            try:
                answer, size = wire.receive(link)
            except (wire.Closed, ValueError):
                answer, size = {"failed": -1, "ended": True}, 0
            with self._changed:
                self.count.control += size
                self._heard = time.monotonic()
                if "done" in answer:
                    self._done(worker, answer)
                elif not self._closing:
                    self._failures.append({**answer, "worker": worker})
                self._changed.notify_all()
            if answer.get("ended"):
                return

    def send(self, worker: int, message: dict[str, Any]) -> None:
        """Raises ShunterError where a worker has failed."""
        if self._failures:
            self._fail()
        try:
            size = wire.send(self._links[worker], message)
        except wire.Closed:
            self.wait(lambda: False, "a message")  # what has happened is about to be known
            raise
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
        until = time.monotonic() + GRACE
        while time.monotonic() < until and not self._killed():
            time.sleep(0.02)
        killed = self._killed()
        failures = list(self._failures)
        told = [it for it in failures if not it.get("ended")]
        own = [it for it in told if not it["lost"]]
        try:
            if killed is not None:
                raise self._ended(killed)
            if own or (told and not any(it.get("ended") for it in failures)):
                raise self._told((own or told)[0])
            ended = next(it["worker"] for it in failures if it.get("ended"))
            raise self._ended(ended)
        finally:
            self.close()

    def _killed(self) -> int | None:
        """A worker that a signal has ended."""
        for worker, process in self._processes.items():
            code = process.poll()
            if code is not None and code < 0:
                return worker
        return None

    def _told(self, failure: Mapping[str, Any]) -> Exception:
        worker = failure["worker"]
        call = self._doing(worker)
        name = self._names[worker] if call == "no call" else f"{self._names[worker]}, {call}"
        if failure["user"]:
            return ShunterError(failure["what"], where=failure["where"] or name, mend=failure["mend"])
        return RuntimeError(f"{name} failed:\n{failure['traceback']}")

    def _ended(self, worker: int) -> Exception:
        process = self._processes[worker]
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        code = process.poll()
        how = "closed its connection"
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        call = self._doing(worker)
        at = "between two calls" if call == "no call" else f"in {call}"
        output = self._folder / f"output-{worker}.txt"
        last = output.read_text(encoding="utf-8", errors="replace")[-LAST:].strip() if output.exists() else ""
        shown = f"; it said last: {last.splitlines()[-1][:300]}" if last else ""
        return ShunterError(
            f"{self._names[worker]} {how} {at}{shown}",
            mend="Run the same command again: it continues from the last checkpoint.",
        )

    def reach(self) -> Reach:
        return _Counting(self._reader, self.count)

    def close(self) -> None:
        """Ask, then end. Nothing of them is left."""
        self._closing = True
        for link in self._links.values():
            with suppress(wire.Closed):
                wire.send(link, {"do": "end"})
        # One that is in the middle of a call does not hear that it is enough.
        until = time.monotonic() + (0.0 if self._failures else GRACE)
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for link in self._links.values():
            link.close()
        shutil.rmtree(self._folder, ignore_errors=True)


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
