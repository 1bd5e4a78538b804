"""Long-lived gloo workers. Starting processes for each test would take most of its time.

`python -m tests.parallel.pool RANK SIZE STORE DESCRIPTOR KEY` is one of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing  # how tensors pass between processes
from torch.distributed import FileStore  # type: ignore[attr-defined]

from shunter.layout.grid import Grid
from shunter.parallel.mesh import Groups, ProcessGroups, make_groups
from tests import warm

WORLD = 4
SECONDS = 120
GRACE = 3.0  # seconds that the others get once a rank has failed: they wait for it

# (rank, groups, argument) -> result; a function at the top of a test module.
Task = Callable[[int, Groups, Any], Any]

# Of each worker: fresh groups for each test would leak threads and descriptors.
GROUPS = ProcessGroups()


_NAMES: dict[str, list[str]] = {}  # module -> its constants


class WorkerFailed(Exception):
    """The traceback of a worker."""


def _work(rank: int, size: int, place: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=SECONDS)
    GROUPS.store = FileStore(place, size)
    dist.init_process_group("gloo", store=GROUPS.store, rank=rank, world_size=size, timeout=wait)
    GROUPS.options["timeout"] = wait
    while True:
        try:
            task, world, argument, grids = pipe.recv()
        except EOFError:
            break
        try:
            # All workers make the groups, also those that the task does not need.
            groups = GROUPS.pipeline(range(world))
            for grid in grids:
                make_groups(grid, GROUPS)
            if task is None:
                continue
            before = _constants()
            made = task(rank, groups, argument)
            if left := [name for name, value in _constants().items() if value != before.get(name, value)]:
                raise RuntimeError(
                    f"the task left {', '.join(left)} changed, and other tests use this worker"
                )
            pipe.send((True, made))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


def _constants() -> dict[str, Any]:
    """Numbers and words that the package's modules have as constants. Where one rank keeps another's value
    for good, ranks send different messages in some later test, and hang."""
    for name, module in list(sys.modules.items()):
        if name.startswith("shunter.") and name not in _NAMES:
            found = [(at, value) for at, value in vars(module).items() if at.isupper()]
            _NAMES[name] = [at for at, value in found if isinstance(value, (bool, int, float, str))]
    return {
        f"{module}.{name}": getattr(sys.modules[module], name, None)
        for module, names in _NAMES.items()
        for name in names
    }


class Pool:
    """Processes with one thread each."""

    def __init__(self, size: int = WORLD) -> None:
        self.size, self.broken = size, False
        self._start(size)

    def _start(self, size: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.pipes: list[Connection] = []
        self.processes = []
        store, key = os.path.join(self.folder.name, "store"), multiprocessing.current_process().authkey.hex()
        for rank in range(size):
            ours, theirs = multiprocessing.Pipe()
            end = theirs.fileno()
            words = [rank, size, store, end, key]
            self.processes.append(
                warm.popen(
                    [sys.executable, "-m", "tests.parallel.pool", *words], cwd=warm.ROOT, pass_fds=[end]
                )
            )
            theirs.close()
            self.pipes.append(ours)

    def run(self, task: Task, world: int, argument: Any = None, *grids: Grid) -> list[Any]:
        """The task's result on ranks 0..world-1. Raises WorkerFailed if one of them raised.

        grids: whose meshes the task makes out of GROUPS.
        """
        if self.broken:  # gloo closes the connections of a call that ended badly, for good
            self.close()
            self.broken = False
            self._start(self.size)
        for rank, pipe in enumerate(self.pipes):
            pipe.send((task if rank < world else None, world, argument, grids))
        answers: dict[int, tuple[bool, Any]] = {}
        until = time.monotonic() + 2 * SECONDS
        while missing := {pipe: rank for rank, pipe in enumerate(self.pipes[:world]) if rank not in answers}:
            ready = wait(list(missing), until - time.monotonic())
            if not ready:
                break
            for heard in ready:
                assert isinstance(heard, Connection)
                try:
                    answers[missing[heard]] = heard.recv()
                except EOFError:
                    answers[missing[heard]] = False, "died"
                if not answers[missing[heard]][0]:
                    until = min(until, time.monotonic() + GRACE)
        told = [f"rank {rank}:\n{value}" for rank, (good, value) in answers.items() if not good]
        told += [f"rank {rank} does not answer" for rank in range(world) if rank not in answers]
        if told:
            self.broken = True
            raise WorkerFailed("\n".join(told))
        return [answers[rank][1] for rank in range(world)]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        # Not asked first: to leave hundreds of groups in good order takes them seconds.
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.folder.cleanup()


if __name__ == "__main__":
    from tests.parallel import pool  # tasks know this module by its name

    rank, size, place, end, key = sys.argv[1:]
    multiprocessing.current_process().authkey = bytes.fromhex(key)  # files of tensors pass by it
    pool._work(int(rank), int(size), place, Connection(int(end)))
