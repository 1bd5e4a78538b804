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
from shunter.post.roles.overseer import GRACE, RERUN, Overseer
from shunter.post.roles.shelf import Reader

if TYPE_CHECKING:
    from shunter.post.roles.flow import Pool

START = 300.0  # seconds that workers get to begin
LAST = 4000  # characters of a worker's output that are shown when it ends without a word


class Processes(Overseer):
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
        super().__init__(done, doing, timeout)
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
            self.hear(worker, answer, size)
            if answer.get("ended"):
                return

    def _hand(self, worker: int, message: dict[str, Any]) -> int:
        try:
            return wire.send(self._links[worker], message)
        except wire.Closed:
            self.wait(lambda: False, "a message")  # what has happened is about to be known
            raise

    def _killed(self) -> int | None:
        """A worker that a signal has ended."""
        for worker, process in self._processes.items():
            code = process.poll()
            if code is not None and code < 0:
                return worker
        return None

    def _ended(self, worker: int) -> Exception:
        process = self._processes[worker]
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        code = process.poll()
        how = "closed its connection"
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        output = self._folder / f"output-{worker}.txt"
        last = output.read_text(encoding="utf-8", errors="replace")[-LAST:].strip() if output.exists() else ""
        shown = f"; it said last: {last.splitlines()[-1][:300]}" if last else ""
        return ShunterError(f"{self._names[worker]} {how} {self._at(worker)}{shown}", mend=RERUN)

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
