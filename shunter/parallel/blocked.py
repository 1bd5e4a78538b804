"""When a rank stands in a call to others: what it computes is the rest of its step.

As `counted`, this wraps the methods of `ProcessGroup`, and `Work.wait` besides. On a CPU by the host's clock:
a call blocks until it is done. On CUDA by events around each call and each wait on the stream that computes:
it stands between them as long as messages take longer than what is computed beside them. Calls of other
threads of Python, as of a checkpoint that is written meanwhile, are left out; so are functional collectives.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist

from shunter.parallel.clock import Mark, Stamps
from shunter.record.split import Call

COLLECTIVES = (
    "allgather", "_allgather_base", "all_gather_single", "allgather_coalesced",
    "allgather_into_tensor_coalesced", "all_gather_single_coalesced", "allreduce", "allreduce_coalesced",
    "reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single", "reduce_scatter_tensor_coalesced",
    "reduce_scatter_single_coalesced", "alltoall_base", "all_to_all_single", "alltoall", "broadcast",
    "reduce", "gather", "scatter",
)  # fmt: skip


class Blocked:
    """Calls as they come. `calls` tells them when the device is done with them."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        self._numbers: Counter[tuple[str, ...]] = Counter()
        self._spans: list[tuple[tuple[str, str, int], Mark, Mark]] = []
        # Held until they are waited for: an id is used again when its object is gone.
        self._works: dict[int, tuple[Any, tuple[str, str, int]]] = {}

    def calls(self) -> list[Call]:
        """In seconds of the host's monotonic clock. Parts of one call have one name."""
        return [
            Call(kind, group, number, self.stamps.seconds(begin), self.stamps.seconds(end))
            for (kind, group, number), begin, end in self._spans
        ]

    def call(self, kind: str, group: str, run: Callable[[], Any]) -> Any:
        """One method of a process group. group: what all that take part know it by."""
        if type(threading.current_thread()) is threading.Thread:
            return run()
        number = self._numbers[kind, group]
        self._numbers[kind, group] += 1
        key = kind, group, number
        begin = self.stamps.mark()
        work = run()
        self._spans.append((key, begin, self.stamps.mark()))
        if kind != "send" and work is not None:
            self._works[id(work)] = work, key
        return work

    def wait(self, work: Any, run: Callable[[], Any]) -> Any:
        """`Work.wait`."""
        if type(threading.current_thread()) is threading.Thread:
            return run()
        _, key = self._works.pop(id(work), (None, ("send", "", -1)))
        begin = self.stamps.mark()
        found = run()
        self._spans.append((key, begin, self.stamps.mark()))
        return found


@contextmanager
def blocked(stamps: Stamps) -> Iterator[Blocked]:
    """Note every call within."""
    found = Blocked(stamps)
    with ExitStack() as stack:
        for name in COLLECTIVES:
            stack.enter_context(mock.patch.object(dist.ProcessGroup, name, _collective(found, name)))
        for name in ("send", "recv"):
            stack.enter_context(mock.patch.object(dist.ProcessGroup, name, _message(found, name)))
        stack.enter_context(mock.patch.object(dist.Work, "wait", _waiting(found)))
        yield found


def _collective(found: Blocked, name: str) -> Callable[..., Any]:
    original = getattr(dist.ProcessGroup, name)

    def method(group: dist.ProcessGroup, *args: Any, **named: Any) -> Any:
        # One counter for all: ranks of a group make the same calls in the same order.
        return found.call("collective", group.group_name, lambda: original(group, *args, **named))

    return method


def _message(found: Blocked, name: str) -> Callable[..., Any]:
    original = getattr(dist.ProcessGroup, name)

    def method(group: dist.ProcessGroup, tensors: Any, peer: int, *args: Any, **named: Any) -> Any:
        ends = (group.rank(), peer) if name == "send" else (peer, group.rank())
        lane = f"{group.group_name} {ends[0]}>{ends[1]}"
        return found.call(name, lane, lambda: original(group, tensors, peer, *args, **named))

    return method


def _waiting(found: Blocked) -> Callable[..., Any]:
    original = dist.Work.wait

    def wait(work: Any, *args: Any, **named: Any) -> Any:
        return found.wait(work, lambda: original(work, *args, **named))

    return wait
