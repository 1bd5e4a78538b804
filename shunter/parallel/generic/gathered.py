"""Weights shared out over ranks that see different rows: whole while a model computes, in parts between.

What a rank's code reads, how often and in which order may depend on its rows: an expert that no token chose,
a loop over the longest row, a layer left out by chance. So nothing is sent when a weight is read. All ranks
bring all weights together at the same moment, before the model computes, and add up all gradients at the same
moment, once a step, used or not. Between, the module is the one that its author wrote, with whole parameters.

That is the memory of ZeRO's first stage (arXiv 1910.02054, section 5.1): the gradient is whole
until it is added up, optimizer state and stored weights are shared out, weights at work are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Peers
from shunter.private import parameters_of

BUCKET_BYTES = 64 << 20  # of one rank's parts that travel together

Place = tuple[nn.Module, str, str]  # owner, its leaf, the parameter's name


class Gathered:
    """places: where parameters in parts stand. parts: this rank's, by name; dims: along which each is cut.
    All ranks of `peers` have the same names in the same order."""

    def __init__(
        self,
        places: Sequence[Place],
        parts: Mapping[str, nn.Parameter],
        dims: Mapping[str, int],
        peers: Peers,
    ) -> None:
        self.places = [place for place in places if place[2] in dims]
        self.parts, self.dims, self.peers = parts, dims, peers
        self.wholes: dict[str, nn.Parameter] = {}
        for owner, leaf, name in self.places:
            _guard(owner, leaf, name)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, the module has whole parameters. All ranks enter, and none may have less to do within than
        to leave. What is entered within has nothing to do."""
        if self.wholes or not self.dims:
            yield
            return
        self.wholes = self._brought()
        self._stand(self.wholes)
        try:
            yield
        finally:
            self._stand(self.parts)
            self.wholes = {}

    @torch.no_grad()
    def add_up(self) -> None:
        """Add the gradients of all ranks' wholes to the parts' own. Within `whole`; all ranks call it."""
        for names in self._buckets():
            flat = []
            for name in names:
                whole = self.wholes[name]
                grad = torch.zeros_like(whole) if whole.grad is None else whole.grad
                flat.append(grad.movedim(self.dims[name], 0).reshape(self.peers.size, -1))
                whole.grad = None
            each = torch.cat(flat, 1)
            mine = each.new_empty(each.shape[1])
            dist.reduce_scatter_tensor(mine, each.flatten(), group=self.peers.group)
            sizes = [self.parts[name].numel() for name in names]
            for name, found in zip(names, mine.split(sizes), strict=True):
                part = self.parts[name]
                shape = part.movedim(self.dims[name], 0).shape
                grad = found.view(shape).movedim(0, self.dims[name])
                part.grad = grad.contiguous().clone() if part.grad is None else part.grad + grad

    @torch.no_grad()
    def _brought(self) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for names in self._buckets(frozen=True):
            firsts = [self.parts[name].detach().movedim(self.dims[name], 0) for name in names]
            mine = torch.cat([first.reshape(-1) for first in firsts])
            every = mine.new_empty(self.peers.size * mine.numel())
            dist.all_gather_into_tensor(every, mine, group=self.peers.group)
            columns = every.view(self.peers.size, -1).split([first.numel() for first in firsts], 1)
            for name, first, column in zip(names, firsts, columns, strict=True):
                whole = column.reshape(self.peers.size * first.shape[0], *first.shape[1:])
                whole = whole.movedim(0, self.dims[name]).contiguous()
                found[name] = nn.Parameter(whole, requires_grad=self.parts[name].requires_grad)
        return found

    def _buckets(self, *, frozen: bool = False) -> Iterator[list[str]]:
        """Names of one type each. frozen: also those of parameters that do not learn."""
        names = [name for name in self.dims if frozen or self.parts[name].requires_grad]
        for kind in sorted({self.parts[name].dtype for name in names}, key=str):
            bucket: list[str] = []
            for name in names:
                if self.parts[name].dtype != kind:
                    continue
                if bucket and sum(self.parts[each].nbytes for each in (*bucket, name)) > BUCKET_BYTES:
                    yield bucket
                    bucket = []
                bucket.append(name)
            if bucket:
                yield bucket

    def _stand(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for owner, leaf, name in self.places:
            parameters_of(owner)[leaf] = parameters[name]
            owner.__dict__[_WHOLE] = parameters is self.wholes


_WHOLE = "_shunter_whole"


def _guard(owner: nn.Module, leaf: str, name: str) -> None:
    """Reading a part as if it were the weight is a mistake that nobody may compute with."""
    known = type(owner).__dict__.get("_shunter_names", ())
    base = type(owner).__mro__[1] if known else type(owner)
    names = (*known, leaf)
    members: dict[str, object] = {each: property(_reader(each)) for each in names}
    owner.__class__ = type(base.__name__, (base,), {**members, "_shunter_names": names})
    owner.__dict__[_WHOLE] = False


def _reader(leaf: str) -> Callable[[nn.Module], Tensor | None]:
    def read(owner: nn.Module) -> Tensor | None:
        if not owner.__dict__[_WHOLE]:
            raise ShunterError(
                f"{type(owner).__name__}.{leaf} is read while each process has a part of it",
                mend="Call the model within `laid.gathered()`, on all processes; or use fitted.predict.",
            )
        return parameters_of(owner)[leaf]

    return read
