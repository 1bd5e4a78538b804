"""Parameters kept in parts by ranks that see the same rows, and so read the same in the same order.

Whoever reads one gets the whole, brought together at that moment.

The parameter itself stays where it was, under its name, and holds this rank's part only: an optimizer, a
checkpoint and `torch.func.functional_call` see the part. Reading `module.weight` goes through a property of
the module's class, so it does not matter which code reads it, or whether another module does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shunter.parallel.generic.collectives import bring
from shunter.parallel.mesh import Peers
from shunter.private import parameters_of

_HELD = "_shunter_shards"
_ORIGIN = "_shunter_origin"


@dataclass(frozen=True)
class Shard:
    """How a parameter lies over `peers`, which see the same rows, and so read the same."""

    dim: int
    peers: Peers
    blocks: tuple[int, ...] = ()

    def whole(self, part: Tensor) -> Tensor:
        """On all ranks, which must all call it."""
        return bring(part, self.dim, self.peers, self.blocks)


def hold(module: nn.Module, name: str, shard: Shard) -> None:
    """Let reading `module.name` give the whole. Its parameter is this rank's part already."""
    held = module.__dict__.get(_HELD)
    if held is None:
        held = module.__dict__[_HELD] = {}
    held[name] = shard
    known = type(module).__dict__.get("_shunter_names", ())
    base = type(module).__mro__[1] if known else type(module)
    names = (*known, name)
    members: dict[str, Any] = {each: property(_reader(each)) for each in names}
    module.__class__ = type(base.__name__, (base,), {**members, "_shunter_names": names})


def plain_class(module: nn.Module) -> type:
    """The class that the module had before its parameters were cut."""
    kind = type(module)
    return kind.__mro__[1] if "_shunter_names" in kind.__dict__ else kind


def _reader(name: str) -> Callable[[nn.Module], Tensor | None]:
    def read(module: nn.Module) -> Tensor | None:
        part = parameters_of(module)[name]
        if part is None:
            return None
        shard: Shard = module.__dict__[_HELD][name]
        whole = shard.whole(part)
        # The storage's object lives as long as the storage, views of it included.
        setattr(whole.untyped_storage(), _ORIGIN, (part.detach(), shard))
        return whole

    return read


@contextmanager
def parts_kept() -> Iterator[None]:
    """Within, autograd keeps parts for the backward where it would keep wholes, and they are brought together
    once more there: more messages, and memory for one whole at a time."""
    with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
        yield


def _pack(tensor: Tensor) -> Any:
    origin = getattr(tensor.untyped_storage(), _ORIGIN, None)
    if origin is None:
        return tensor
    return origin, tensor.size(), tensor.stride(), tensor.storage_offset()


def _unpack(saved: Any) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    (part, shard), size, stride, offset = saved
    with torch.no_grad():
        whole: Tensor = shard.whole(part)
    return whole.as_strided(size, stride, offset)
