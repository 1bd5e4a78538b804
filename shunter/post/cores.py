"""Cores that processes of one job share out, of which those that compute have those of who waits.

A byte for each process, in memory that all of them map, says whether it waits. The learner alone writes it:
it knows what each writer owes. All look at it between two parts of their work, so a core is given back when
the part at hand is done.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shunter.post.parcel import unnamed

LEARNER = 0  # its place; those after it write


class Cores:
    """As one of the processes sees them."""

    def __init__(self, file: int, cores: int, processes: int, place: int) -> None:
        """file: a descriptor of the bytes, which is this object's from now on. cores: that are shared out.
        processes: those that share them. place: of this process among all."""
        self.file, self.cores, self.processes, self.place = file, cores, processes, place
        self._bytes = mmap.mmap(file, processes)
        weakref.finalize(self, os.close, file)

    @classmethod
    def shared(cls, cores: int, processes: int) -> Cores | None:
        """For the learner; writers wait, as nothing has been asked of them yet. None where no memory can be
        shared."""
        file = unnamed(processes)
        if file is None:
            return None
        found = cls(file, cores, processes, LEARNER)
        for place in range(LEARNER + 1, processes):
            found.set(place, waits=True)
        return found

    def waits(self, place: int) -> bool:
        """Whether that process has nothing to do."""
        return self._bytes[place] == 1

    def set(self, place: int, *, waits: bool) -> None:
        """Note whether that process has nothing to do."""
        self._bytes[place] = int(waits)

    def of(self, place: int) -> int:
        """Cores of a process that computes now, one at least; the first has what cannot be shared out."""
        busy = [other for other in range(self.processes) if other == place or not self.waits(other)]
        each = max(1, self.cores // len(busy))
        return max(1, self.cores - each * (len(busy) - 1)) if place == busy[0] else each

    def take(self) -> None:
        """Compute on as many threads from now on, on the thread that calls."""
        if (count := self.of(self.place)) != torch.get_num_threads():
            torch.set_num_threads(count)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """This process waits inside."""
        self.set(self.place, waits=True)
        try:
            yield
        finally:
            self.set(self.place, waits=False)
