"""Several processes of one job on this machine, forked from one that `forked` describes."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch import waited
from shunter.launch.recur import RankDied

EVERY = 0.1  # seconds between two looks at the processes
ENDED = "ended.json"  # in a launch's folder: process and exit code of those that ended badly, in that order
PARTING = 40.0  # seconds that processes get to end after they were told to
# What gloo and NCCL say of a peer that is gone, to whoever is in the middle of a message.
_GONE = (
    "connection closed by peer", "connection reset by peer", "peer closed connection", "broken pipe",
    "timed out waiting", "wait timeout", "collective operation timeout", "remote process exited",
)  # fmt: skip


def launch(
    module: str, request: dict[str, Any], count: int, folder: Path, *, threads: int, poll: Callable[[], None]
) -> dict[str, Any]:
    """Run the `work` of a module on `count` ranks, by `serve`. Returns what rank 0 answered.

    request: what they are told. Its `ranks`, if there: the number of the process, and so of the device, that
    has each rank. poll: called many times a second meanwhile. folder: for the request, answers and the
    processes' output.

    One rank that ends badly ends all. Raises what the first of them told: its ShunterError, or a
    RuntimeError with its traceback. If this process dies, so do they.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in [
        *folder.glob("answer*.json"),
        *folder.glob("failed-*.json"),
        *folder.glob("stack-*.txt"),
        folder / ENDED,
    ]:
        left.unlink(missing_ok=True)
    path = folder / "request.json"
    path.write_text(json.dumps({**request, "folder": str(folder)}), encoding="utf-8")
    command = [sys.executable, "-u", "-m", "shunter.launch.forked", module, str(path), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing listens beyond this machine
    output = folder / "output.txt"
    with output.open("w") as file:
        # A session of its own: Ctrl-C is for this process, which asks the ranks to save first.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        try:
            while process.poll() is None:
                poll()
                time.sleep(EVERY)
            poll()
        finally:
            end(process)
    failures = sorted(
        (json.loads(each.read_text(encoding="utf-8")) for each in folder.glob("failed-*.json")),
        key=lambda failure: float(failure["time"]),
    )
    answer = folder / "answer.json"
    if process.returncode == 0 and answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    ended: list[tuple[int, int]] = []
    if (folder / ENDED).exists():
        told = json.loads((folder / ENDED).read_text(encoding="utf-8"))
        ended = [(place_of(request, process), code) for process, code in told]
    raise cause(failures, ended, f"the launch of the ranks ended with code {process.returncode}", output)


def place_of(request: dict[str, Any], process: int) -> int:
    """The rank that a process has: its place in the request's `ranks`, where these say which process has
    which; else its number."""
    order = request.get("ranks")
    return process if order is None else int(order.index(process))


def cause(
    failures: list[dict[str, Any]], ended: list[tuple[int, int]], otherwise: str, where: Path
) -> Exception:
    """The first failure that is no consequence of another.

    failures: what ranks told, in order. ended: (rank, exit code, or minus the signal) of ranks that ended
    badly: one that died tells nothing itself. otherwise: said when nothing is known.
    """
    told = {failure["rank"] for failure in failures}
    # SIGTERM is what the others are ended with.
    silent = [
        (rank, number)
        for rank, number in ended
        if rank not in told and (not failures or number != -signal.SIGTERM)
    ]
    if not silent:
        # Not by when alone: clocks of machines differ by more than ranks take to notice.
        for failure in failures:
            if failure["lost"]:
                continue
            if failure["user"]:
                return ShunterError(failure["what"], where=failure["where"], mend=failure["mend"])
            return RuntimeError(f"rank {failure['rank']} failed:\n{failure['traceback']}")
    if silent:
        rank, number = min(silent, key=lambda each: each[1] == -signal.SIGTERM)
        how = f"by {signal.Signals(-number).name}" if number < 0 else f"with exit code {number}"
        what = f"rank {rank} was ended {how}"
        # Where it was in its work, those tell who waited for it: best one that names it.
        said = [failure["what"] for failure in failures if failure["lost"]]
        said.sort(key=lambda told: f"rank {rank} does not answer" not in told)
        what += f"; {said[0]}" if said else ""
    elif (stuck := waited.told(failures, ended, where)) is not None:
        return stuck
    elif failures:
        what = failures[0]["what"]
    else:
        what = otherwise
    return RankDied(
        what, where=str(where), mend="Run the same command again: it continues from the last checkpoint."
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a launcher, which ends its ranks when it is told to. If it cannot it is killed, and the ranks, each
    with its group, end by what `guard` has set."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PARTING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a new process: Linux sends it this signal when its parent has died. Elsewhere `guard` sees to it
    later."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG


def end_group(leader: int) -> None:
    """Kill the process group of this one, with whatever it has started that leads none of its own: zygotes,
    what reads data. Its leader may be gone: while others are in the group, no process gets its number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def guard() -> None:
    """In a rank: end when the launcher is gone, with all of its group if it leads one, so that nothing goes
    on writing unseen. On Linux the kernel ends it, as no thread of Python may run: a library may compute for
    long and hold the interpreter."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        if os.getpgrp() == os.getpid():
            end_group(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if os.getpgrp() == os.getpid() and sys.platform == "linux":
        _group_dies_with_parent()


def _group_dies_with_parent() -> None:
    """The signal that tells of the parent's death ends one process. So it is one whose handler, without
    Python, writes into a pipe; and the kernel tells the group by SIGKILL that there is something to read."""
    read, write = os.pipe()
    try:
        fcntl.fcntl(read, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(read, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
        faulthandler.register(signal.SIGRTMAX, file=write)
    except OSError:  # a kernel that does not have it: the rank ends alone, by `die_with_parent`
        os.close(read)
        os.close(write)
    else:
        die_with_parent(signal.SIGRTMAX)


def serve(work: Callable[[dict[str, Any], int, int], dict[str, Any] | None]) -> int:
    """In a rank: `work(request, rank, world size)`; rank 0's result is the answer. Returns the exit code."""
    guard()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    process, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rank = place_of(request, process)
    folder = Path(request["folder"])
    waited.leave_word(folder, rank)
    try:
        answer = work(request, rank, size)
    except BaseException as error:
        user, lost = isinstance(error, ShunterError), _of_another(error)
        said = getattr(error, "what", str(error))
        if lost and not user:
            said = f"rank {rank} lost another rank ({str(error).strip().splitlines()[0][:200]})"
        failure = {
            "time": time.time(), "rank": rank, "user": user, "traceback": traceback.format_exc(),
            "what": said, "where": getattr(error, "where", None),
            "mend": getattr(error, "mend", None), "lost": lost,
            "late": lost and waited.late(error), "waited": waited.what(error) if lost else None,
        }  # fmt: skip
        if not user:
            traceback.print_exc()  # into the rank's output, which is kept
        _write(folder / f"failed-{process}.json", failure)
        return 2 if user else 1
    if rank == 0:
        _write(folder / "answer.json", answer or {})
    return 0


def _of_another(error: BaseException) -> bool:
    """Whether it tells of another rank's end: an error that says so (`PeerLost`), or what torch raises where
    ranks meet within a layer."""
    if getattr(error, "lost", False):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _GONE)


def _write(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(data), encoding="utf-8")
    os.replace(aside, path)
