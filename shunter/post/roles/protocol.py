"""Transfer protocols: who gets which part of an argument, and whose results make up the answer.

A protocol belongs to an operation and is declared where this is written:

    class Reference(Role):
        @operation("dp")
        def logprobs(self, written: Rows) -> Rows: ...

Positional arguments are results of other operations and are distributed; named ones are plain values that all
ranks are told. Those of arXiv 2409.19256, table 1, are here; a person adds others with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.layout.generation import Hybrid
from shunter.post.roles.source import Joined, Part, Share, Source, joined

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Protocol:
    """distribute: of an argument, what each rank gets. collect: of the ranks' results (None of those that
    were not called), the answer. ranks: those that are called; default: all."""

    distribute: Callable[[Hybrid, Any], Sequence[Any]]
    collect: Callable[[Hybrid, Sequence[Part | None]], Any]
    ranks: Callable[[Hybrid], Sequence[int]] = lambda layout: range(layout.size)


_PROTOCOLS: dict[str, Protocol] = {}


def register(name: str, protocol: Protocol) -> None:
    """Make a protocol known by its name, in the controller's process; workers need not know it. Raises
    ShunterError where there is another one of that name."""
    if _PROTOCOLS.get(name, protocol) != protocol:
        raise ShunterError(f"there is a protocol {name} already", mend="Choose another name.")
    _PROTOCOLS[name] = protocol


def find(name: str) -> Protocol:
    """A protocol by its name. Raises ShunterError for an unknown one."""
    if name not in _PROTOCOLS:
        near = nearest(name, _PROTOCOLS)
        raise ShunterError(
            f"there is no protocol {name!r}", mend=f"Did you mean {near}?" if near else "Register it first."
        )
    return _PROTOCOLS[name]


def operation(protocol: str) -> Callable[[Function], Function]:
    """Mark a method of a role as one that the controller may call, by this protocol."""

    def mark(method: Function) -> Function:
        method.protocol = protocol  # type: ignore[attr-defined]
        return method

    return mark


def _to_all(layout: Hybrid, value: Any) -> list[Any]:
    return [value] * layout.size


def _shared(count: Callable[[Hybrid], int], index: Callable[[Hybrid, int], int]) -> Any:
    def distribute(layout: Hybrid, value: Any) -> list[Any]:
        _check_source(value)
        return [Share(value, index(layout, rank), count(layout)) for rank in range(layout.size)]

    return distribute


def _from(ranks: Callable[[Hybrid], Sequence[int]]) -> Any:
    def collect(layout: Hybrid, parts: Sequence[Part | None]) -> Source:
        return joined([part for rank in ranks(layout) if (part := parts[rank]) is not None])

    return collect


def _each(layout: Hybrid, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != layout.size:
        raise ShunterError(f"give one value for each of the {layout.size} ranks, as a list")
    return list(value)


def _check_source(value: Any) -> None:
    if not isinstance(value, Part | Joined | Share):
        raise ShunterError(
            f"a {type(value).__name__} cannot be shared out between ranks",
            mend="Give the result of an operation; plain values go by name, and all ranks are told them.",
        )


def _last_stage(layout: Hybrid) -> list[int]:
    return [layout.rank(d, layout.p - 1, 0) for d in range(layout.d)]


def _writers(layout: Hybrid) -> list[int]:
    """The first rank of each copy that writes; with stages, of the last one."""
    found: dict[int, int] = {}
    for rank in range(layout.size):
        seat = layout.seat(rank)
        if seat.pg == layout.pg - 1:
            found.setdefault(seat.copy, rank)
    return [found[copy] for copy in sorted(found)]


def _stages(layout: Hybrid) -> list[int]:
    return [layout.rank(0, p, 0) for p in range(layout.p)]


_every: Callable[[Hybrid], Sequence[int]] = lambda layout: range(layout.size)  # noqa: E731
_first: Callable[[Hybrid], Sequence[int]] = lambda layout: [0]  # noqa: E731

# All ranks get the same; the answer is a list of what each says.
register("one_to_all", Protocol(_to_all, lambda layout, parts: list(parts)))
# Copies that learn share the rows; the ranks of one get the same (3D_PROTO).
register("dp", Protocol(_shared(lambda it: it.d, lambda it, rank: it.seat(rank).d), _from(_last_stage)))
# Copies that write share the rows (3D_ALL_MICRO_DP).
register(
    "micro_dp", Protocol(_shared(lambda it: it.copies, lambda it, rank: it.seat(rank).copy), _from(_writers))
)
# All get the same; stages answer one after the other (3D_PP_ONLY).
register("pp_only", Protocol(_to_all, _from(_stages)))
# All ranks share the rows (DP_PROTO).
register("spread", Protocol(_shared(lambda it: it.size, lambda it, rank: rank), _from(_every)))
# The caller gives one value a rank, and gets a list.
register("all_to_all", Protocol(_each, lambda layout, parts: list(parts)))
# One rank gets all, and answers alone.
register("all_to_one", Protocol(_to_all, _from(_first), _first))
