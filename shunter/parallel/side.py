"""Collectives beside the compute: a thread does them in order, on CUDA on a stream of its own.

A collective whose steps depend on each other (statistics first, then a gradient scaled by them) would else
keep the compute lane waiting for the slowest rank between the steps.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

from shunter.parallel.lost import answering
from shunter.parallel.tree import Tree


class Work:
    """A collective under way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended = threading.Event()
        self._made: Tree = {}
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
            for tensor in self._made.values():
                tensor.record_stream(stream)
        return self._made


class Side:
    """One rank's thread. Every rank begins the same collectives in the same order."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        self._queue: SimpleQueue[tuple[Work, str, Callable[[], Tree], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._queue.put, None)

    def begin(self, what: str, collective: Callable[[], Tree]) -> Work:
        """Do it as soon as those before it have ended; `what` names it where a peer does not answer."""
        if self._thread is None:
            # A daemon: with a peer lost, it waits out the group's timeout, which nobody should wait for.
            self._thread = threading.Thread(
                target=_serve, args=(self._queue, self.rank, self.device), daemon=True, name="collectives"
            )
            self._thread.start()
        work = Work(self.device)
        ready = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        self._queue.put((work, what, collective, ready))
        return work


def _serve(
    queue: SimpleQueue[tuple[Work, str, Callable[[], Tree], Any] | None], rank: int, device: torch.device
) -> None:
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    while (task := queue.get()) is not None:
        work, what, collective, ready = task
        try:
            with answering(rank, what), torch.no_grad():
                if stream is None:
                    work._made = collective()
                else:
                    with torch.cuda.device(device), torch.cuda.stream(stream):
                        stream.wait_event(ready)
                        work._made = collective()
                        work._event = stream.record_event()
        except BaseException as error:  # told to whoever waits
            work._error = error
        work._ended.set()
        del task, work, collective  # nothing is kept while waiting for the next one
