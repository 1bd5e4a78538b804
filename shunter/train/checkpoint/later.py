"""A save that goes on beside the training: values copied aside, and one thread that writes them.

At most one is on its way: the copies of the next would take the place of those that are still being written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from shunter.layout.piece import Piece

Part = tuple[str, Piece, Tensor]  # name, which part of the whole, its values


class Staging:
    """Host memory for the values of one save, kept for the next: as much again as this process writes.

    Of a GPU's values the memory is pinned, so that their copies travel while the host goes on; torch hands
    pinned memory out in powers of two.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, parts: Iterable[Part]) -> list[Part]:
        """The same parts, with values as they are now. On a GPU they are there after `arrive`; whatever is
        given to the present stream from now on comes after the copies."""
        found: list[Part] = []
        self._copied = None
        for name, piece, tensor in parts:
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(tensor.detach(), non_blocking=True)
            if tensor.is_cuda and self._copied is None:
                self._copied = torch.cuda.Event()
            found.append((name, piece, buffer))
        if self._copied is not None:
            self._copied.record()
        return found

    def arrive(self) -> None:
        """Wait until the values of the last `copy` are all here."""
        if self._copied is not None:
            self._copied.synchronize()

    @property
    def bytes(self) -> int:
        """Of the copies."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class Flight:
    """Work on a thread of its own. The interpreter does not end before it has."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as failure:  # told by `land`, in the thread that asks
            self._failure = failure

    @property
    def landed(self) -> bool:
        """Whether the work has ended, well or not."""
        return not self._thread.is_alive()

    def land(self) -> None:
        """Wait for its end. Raises what it raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
