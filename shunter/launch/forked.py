"""The ranks of a job on this machine: forks of one process that has loaded what they need.

`python -u -m shunter.launch.forked MODULE REQUEST COUNT`. To load torch takes seconds of a core and hundreds
of megabytes, here once for all ranks: first MODULE, then the modules that its LOADS names. Before the forks
nothing is computed and no device is touched: a fork of a process with threads may hang, and CUDA does not
live on in one. Elsewhere than on Linux, where libraries of the system do not bear a fork, each rank is a
process that loads everything itself.

Once a rank has ended badly, the others get GRACE seconds to tell what they waited for; then all are ended.
Each leads a process group, which ends with it.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import ForkProcess, SpawnProcess
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from shunter.launch import elastic
from shunter.launch.recur import NOTICED

GRACE = 2.0  # seconds in which ranks tell of a failure before all are ended
STAY = 30.0  # seconds that ranks get to end once they were told to
FORKS = sys.platform == "linux"
HOST = "127.0.0.1"  # nothing listens beyond this machine

Process = ForkProcess | SpawnProcess


def main(module: str, request: str, count: int) -> int:
    """Start the ranks and wait for them. Returns 1 when one ended badly or all were told to end."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    if FORKS:
        for name in getattr(importlib.import_module(module), "LOADS", ()):
            importlib.import_module(name)
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    os.register_at_fork(after_in_child=listener.close)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    ranks = [_process(module, request, number, count, port) for number in range(count)]
    try:
        # Else a fork that is told to end before it has its own way with the signal would take note of it, as
        # this process does, and go on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        for rank in ranks:
            rank.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # Through which the ranks find each other. Made after the forks, since it has threads: who comes
        # earlier waits for it at the socket.
        end = listener.detach()
        store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=end)
        ended = _wait(ranks, told)
        del store
    finally:  # whatever failed here, no rank outlives it: at its end Python would wait for them
        for rank in ranks:
            if rank.pid is not None and rank.is_alive():
                _kill(rank)
    with suppress(OSError):  # a full disk: what the ranks said is the cause then
        (Path(asked["folder"]) / elastic.ENDED).write_text(json.dumps(ended), encoding="utf-8")
    return int(bool(ended or told))


def _process(module: str, request: str, number: int, count: int, port: int) -> Process:
    arguments = (module, request, number, count, port, os.getpid())
    if FORKS:
        return multiprocessing.get_context("fork").Process(target=_rank, args=arguments)
    return multiprocessing.get_context("spawn").Process(target=_rank, args=arguments)


def _rank(module: str, request: str, number: int, count: int, port: int, launcher: int) -> None:
    """In a rank: what torchrun would have told it, then its work."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    elastic.die_with_parent()
    if os.getppid() != launcher:
        os._exit(1)
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": HOST, "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # which the parent holds
    }  # fmt: skip
    sys.argv = [module, request]
    code = elastic.serve(importlib.import_module(module).work)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # process groups whose peers are gone would wait for them


def _wait(ranks: Sequence[Process], told: list[int]) -> list[tuple[int, int]]:
    """Until all have ended. told: is no longer empty once this process was told to end. Returns process and
    exit code (minus the signal; SIGTERM of one that was ended here) of each that ended badly, in the order in
    which they did."""
    living = dict(enumerate(ranks))
    ended: list[tuple[int, int]] = []
    killed = False  # those that did not end when they were told to
    first = ending = float("inf")  # when the first ended badly, and when the others were told to end
    while living:
        connection.wait([rank.sentinel for rank in living.values()], elastic.EVERY)
        now = time.monotonic()
        for number, rank in list(living.items()):
            if (code := rank.exitcode) is not None:
                del living[number]
                _end_group(rank)
                if code and not ended:
                    first = now
                    with suppress(OSError):  # a full disk, which the rank may have died of
                        print(NOTICED, flush=True)
                if code:
                    ours = killed and code == -signal.SIGKILL
                    ended.append((number, -signal.SIGTERM if ours else code))
        if ending == float("inf") and (told or now > first + GRACE):
            ending = now
            for rank in living.values():
                rank.terminate()
        elif now > ending + STAY:
            killed = True
            for rank in living.values():
                _kill(rank)
    return ended


def _kill(rank: Process) -> None:
    """With its group; by itself where it has not made one yet."""
    _end_group(rank)
    rank.kill()


def _end_group(rank: Process) -> None:
    assert rank.pid, "0 would be this process's own group"
    elastic.end_group(rank.pid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
