"""Long-lived gloo workers. Starting processes for each test would take most of its time.

`python -m tests.parallel.pool RANK SIZE STORE DESCRIPTOR KEY` is one of them.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing  # how tensors pass between processes that `send` leaves to it
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


# The package's modules that have been looked through, and where each of their constants stands.
_SEEN: set[str] = set()
_PLACES: list[tuple[str, str]] = []


class WorkerFailed(Exception):
    """The traceback of a worker."""


class _Plain(ForkingPickler):
    """Tensors by their bytes. As torch would have it, each is a file of shared memory whose descriptor passes
    through a connection of its own, which for the small ones of tests takes longer than what is tested."""

    def reducer_override(self, thing: Any) -> Any:
        kind = type(thing)
        plain = kind in (torch.Tensor, torch.nn.Parameter) and thing.is_leaf and thing.device.type == "cpu"
        if not plain or thing.layout != torch.strided or thing.is_quantized or thing.is_conj():
            return NotImplemented
        data = thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _tensor, (data, thing.dtype, tuple(thing.shape), thing.requires_grad, kind)


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...], grad: bool, kind: type) -> torch.Tensor:
    made = torch.empty(shape, dtype=dtype)
    if data:
        made = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
    return torch.nn.Parameter(made, grad) if kind is torch.nn.Parameter else made.requires_grad_(grad)


def send(pipe: Connection, thing: Any) -> None:
    file = io.BytesIO()
    _Plain(file, pickle.HIGHEST_PROTOCOL).dump(thing)
    pipe.send_bytes(file.getbuffer())


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
            # Those of modules that came meanwhile stand at the end.
            if left := [
                ".".join(place)
                for place, was, value in zip(_PLACES, before, _constants(), strict=False)
                if was != value
            ]:
                raise RuntimeError(
                    f"the task left {', '.join(left)} changed, and other tests use this worker"
                )
            send(pipe, (True, made))
        except BaseException:
            send(pipe, (False, traceback.format_exc()))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


def _constants() -> list[Any]:
    """Numbers and words that the package's modules have as constants. Where one rank keeps another's value
    for good, ranks send different messages in some later test, and hang."""
    for name in [each for each in list(sys.modules) if each.startswith("shunter.") and each not in _SEEN]:
        _SEEN.add(name)
        found = [(at, value) for at, value in vars(sys.modules[name]).items() if at.isupper()]
        _PLACES.extend((name, at) for at, value in found if isinstance(value, (bool, int, float, str)))
    modules = sys.modules
    return [vars(modules[name]).get(at) for name, at in _PLACES]


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
            send(pipe, (task if rank < world else None, world, argument, grids))
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
