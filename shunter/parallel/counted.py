"""Bytes that this process sends to other ranks, by kind of communication, group and receiver.

Two nets are cast. Methods of `ProcessGroup` are wrapped: torch.distributed, FSDP2, DTensor's point-to-point
and our own code call them, in whatever thread. Functional collectives (DTensor, compiled regions run eagerly)
reach the backend below Python, so a dispatch mode sees those, in the thread that counts and in its backward
passes. Code compiled by inductor, and functional collectives of other threads, are not seen.

What is counted is what the cheapest usual algorithm sends, whatever the backend does inside; for n ranks and
s bytes on each:

    all-gather      s (n - 1) to the next rank           all-reduce  2 s (n - 1) / n to the next rank
    reduce-scatter  s (n - 1) / n to the next rank       all-to-all  each part to its rank
    broadcast       s from the root to each other rank   scatter     each part to its rank
    reduce, gather  s to the root                        send        s
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from shunter.private import DispatchMode, arguments_of, group_of, name_of


@dataclass(frozen=True)
class Sending:
    """kind: "all-gather", ... group: its global ranks. target: global rank of the receiver."""

    kind: str
    group: tuple[int, ...]
    target: int


@dataclass
class Counted:
    """bytes: of each sending. calls: of (kind, group), among them those that send nothing from here."""

    bytes: Counter[Sending] = field(default_factory=Counter)
    calls: Counter[tuple[str, tuple[int, ...]]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def total(self, kind: str | None = None, group: Sequence[int] | None = None) -> int:
        """Bytes of one kind, of one group, or of all."""
        return sum(
            size
            for sending, size in self.bytes.items()
            if kind in (None, sending.kind) and (group is None or sending.group == tuple(group))
        )

    def leaving(self, node: int) -> int:
        """Bytes to ranks on other nodes, with `node` consecutive ranks on each."""
        here = dist.get_rank() // node
        return sum(size for sending, size in self.bytes.items() if sending.target // node != here)

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind."""
        found: dict[str, int] = {}
        for sending, size in self.bytes.items():
            found[sending.kind] = found.get(sending.kind, 0) + size
        return found

    def note(self, kind: str, group: dist.ProcessGroup, sent: Sequence[tuple[int, int]]) -> None:
        """One call: (place in the group, bytes) of its receivers; the own place is left out."""
        ranks = tuple(dist.get_process_group_ranks(group))
        with self._lock:
            self.calls[kind, ranks] += 1
            for place, size in sent:
                if place != group.rank() and size:
                    self.bytes[Sending(kind, ranks, ranks[place])] += size


@contextmanager
def counted() -> Iterator[Counted]:
    """Count what is sent within. May be nested; each counts all that happens inside it."""
    found = Counted()
    with ExitStack() as stack:
        for name, (kind, sent) in _METHODS.items():
            stack.enter_context(mock.patch.object(dist.ProcessGroup, name, _wrap(found, name, kind, sent)))
        stack.enter_context(_Functional(found))
        yield found


# What each method of a ProcessGroup sends: its positional arguments -> (place in the group, bytes).
_Sent = Callable[[dist.ProcessGroup, tuple[Any, ...]], list[tuple[int, int]]]


def _wrap(found: Counted, name: str, kind: str, sent: _Sent) -> Callable[..., Any]:
    original = getattr(dist.ProcessGroup, name)

    def method(group: dist.ProcessGroup, *args: Any, **named: Any) -> Any:
        # Noted first: a call in place may change what it was given.
        found.note(kind, group, sent(group, (*args, *named.values())))
        return original(group, *args, **named)

    return method


def _size(tensors: Any) -> int:
    """Bytes of a tensor or of nested lists of them."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(_size(each) for each in tensors)


def _next(group: dist.ProcessGroup, size: int) -> list[tuple[int, int]]:
    return [((group.rank() + 1) % group.size(), size)]


def _root(args: tuple[Any, ...]) -> int:
    """The root's place, from the options or told by itself."""
    for each in args[1:]:
        if hasattr(each, "rootRank"):
            return int(each.rootRank)
    return next((each for each in args[1:] if isinstance(each, int)), 0)


def _all_gather(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return _next(group, _size(args[1]) * (group.size() - 1))


def _all_reduce(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return _next(group, 2 * _size(args[0]) * (group.size() - 1) // group.size())


def _reduce_scatter(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return _next(group, _size(args[1]) * (group.size() - 1) // group.size())


def _all_to_all_single(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return _split(group, args[1], args[3] if len(args) > 3 else ())


def _split(group: dist.ProcessGroup, given: Tensor, splits: Sequence[int]) -> list[tuple[int, int]]:
    if not splits:
        return [(place, _size(given) // group.size()) for place in range(group.size())]
    row = _size(given[:1]) if len(given) else 0
    return [(place, rows * row) for place, rows in enumerate(splits)]


def _all_to_all(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return [(place, _size(part)) for place, part in enumerate(args[1])]


def _broadcast(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    if _root(args) != group.rank():
        return []
    return [(place, _size(args[0])) for place in range(group.size())]


def _reduce(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return [(_root(args), _size(args[0]))]


def _gather(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return [(_root(args), _size(args[1]))]


def _scatter(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    parts = args[1][0] if args[1] and not isinstance(args[1][0], Tensor) else args[1]
    return [(place, _size(part)) for place, part in enumerate(parts)]


def _send(group: dist.ProcessGroup, args: tuple[Any, ...]) -> list[tuple[int, int]]:
    return [(int(args[1]), _size(args[0]))]


# Some have two names, the older of which torch 2.13 keeps.
_METHODS: dict[str, tuple[str, _Sent]] = {
    "allgather": ("all-gather", _all_gather),
    "_allgather_base": ("all-gather", _all_gather),
    "all_gather_single": ("all-gather", _all_gather),
    "allgather_coalesced": ("all-gather", _all_gather),
    "allgather_into_tensor_coalesced": ("all-gather", _all_gather),
    "all_gather_single_coalesced": ("all-gather", _all_gather),
    "allreduce": ("all-reduce", _all_reduce),
    "allreduce_coalesced": ("all-reduce", _all_reduce),
    "reduce_scatter": ("reduce-scatter", _reduce_scatter),
    "_reduce_scatter_base": ("reduce-scatter", _reduce_scatter),
    "reduce_scatter_single": ("reduce-scatter", _reduce_scatter),
    "reduce_scatter_tensor_coalesced": ("reduce-scatter", _reduce_scatter),
    "reduce_scatter_single_coalesced": ("reduce-scatter", _reduce_scatter),
    "alltoall_base": ("all-to-all", _all_to_all_single),
    "all_to_all_single": ("all-to-all", _all_to_all_single),
    "alltoall": ("all-to-all", _all_to_all),
    "broadcast": ("broadcast", _broadcast),
    "reduce": ("reduce", _reduce),
    "gather": ("gather", _gather),
    "scatter": ("scatter", _scatter),
    "send": ("send", _send),
}


class _Functional(DispatchMode):
    """Functional collectives: torch.ops._c10d_functional, whose last argument names the group."""

    def __init__(self, found: Counted) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls collectives on plain tensors, which come here
        if func.namespace == "_c10d_functional":
            self._note(func, {**_named(func, args), **(kwargs or {})})
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, named: dict[str, Any]) -> None:
        name = name_of(func).rstrip("_").removesuffix("_out").removesuffix("_coalesced")
        if name not in _FUNCTIONAL:
            if name in ("wait_tensor", "irecv", "_wrap_tensor_autograd"):
                return
            raise NotImplementedError(f"bytes of the functional collective {name} are not counted")
        group = named["group_name"]
        if isinstance(group, str):
            group = group_of(group)
        elif not isinstance(group, dist.ProcessGroup):
            group = dist.ProcessGroup.unbox(group)
        kind, sent = _FUNCTIONAL[name]
        self.found.note(kind, group, sent(group, named))


def _named(func: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(arguments_of(func), args, strict=False))


def _given(named: dict[str, Any]) -> Any:
    """The tensor or tensors: the first argument."""
    return next(iter(named.values()))


_FUNCTIONAL: dict[str, tuple[str, Callable[[Any, dict[str, Any]], list[tuple[int, int]]]]] = {
    "all_gather_into_tensor": ("all-gather", lambda group, a: _all_gather(group, ((), _given(a)))),
    "all_reduce": ("all-reduce", lambda group, a: _all_reduce(group, (_given(a),))),
    "reduce_scatter_tensor": ("reduce-scatter", lambda group, a: _reduce_scatter(group, ((), _given(a)))),
    "all_to_all_single": ("all-to-all", lambda group, a: _split(group, _given(a), a["input_split_sizes"])),
    "broadcast": ("broadcast", lambda group, a: _broadcast(group, (_given(a), a["src"]))),
    "isend": ("send", lambda group, a: [(dist.get_group_rank(group, a["dst"]), _size(_given(a)))]),
}
