"""Collectives beside the compute: a thread does them in order, on CUDA on a stream of its own.

A collective whose steps depend on each other (statistics first, then a gradient scaled by them) would else
keep the compute lane waiting for the slowest rank between the steps.

On CUDA the memory of a tensor belongs to the stream that it was made on: dropped by the host, it is given to
the next tensor of that stream, whatever other streams still do with it. So each collective says what it reads
(made on the compute stream) and what it leaves behind (made on its own, read on the compute stream), and
both are noted with the allocator. Read off torch's rules of streams; not tried with NCCL yet.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shunter.parallel.lost import answering
from shunter.parallel.tree import Tree


class Work:
    """A collective under way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended = threading.Event()
        self._made: Tree = {}
        self._left: Sequence[Tensor] = ()
        self._error: BaseException | None = None
        self._event: Any = None

    def wait(self) -> Tree:
        """What it made. Raises what went wrong in it."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        if self._event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._event)
            for tensor in (*self._made.values(), *self._left):
                tensor.record_stream(stream)
        return self._made


class _Task(NamedTuple):
    work: Work
    what: str
    collective: Callable[[], Tree]
    ready: Any
    reads: Sequence[Tensor]
    leaves: Sequence[Tensor]


class Side:
    """One rank's thread. Every rank begins the same collectives in the same order."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._queue.put, None)

    def begin(
        self,
        what: str,
        collective: Callable[[], Tree],
        reads: Sequence[Tensor] = (),
        leaves: Sequence[Tensor] = (),
    ) -> Work:
        """Do it as soon as those before it have ended; `what` names it where a peer does not answer.

        reads:  tensors of the compute stream that the collective reads or writes.
        leaves: a list to which the collective adds what it makes besides what it returns.
        """
        if self._thread is None:
            # A daemon: with a peer lost, it waits out the group's timeout, which nobody should wait for.
            self._thread = threading.Thread(
                target=_serve, args=(self._queue, self.rank, self.device), daemon=True, name="collectives"
            )
            self._thread.start()
        work = Work(self.device)
        ready = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        self._queue.put(_Task(work, what, collective, ready, reads, leaves))
        return work


def _serve(queue: SimpleQueue[_Task | None], rank: int, device: torch.device) -> None:
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    while (task := queue.get()) is not None:
        work, what, collective, ready, reads, leaves = task
        try:
            with answering(rank, what), torch.no_grad():
                if stream is None:
                    work._made = collective()
                else:
                    with torch.cuda.device(device), torch.cuda.stream(stream):
                        stream.wait_event(ready)
                        for tensor in reads:
                            tensor.record_stream(stream)
                        work._made = collective()
                        work._left = leaves
                        work._event = stream.record_event()
        except BaseException as error:  # told to whoever waits
            work._error = error
        work._ended.set()
        del task, work, collective, reads, leaves  # nothing is kept while waiting for the next one
