"""Bytes of all tensors that are alive, and a pipeline stage whose peak is taken: memory without an
allocator."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shunter.private import DispatchMode, place_of, tree_leaves


class LiveBytes(DispatchMode):
    """Counts storages that operations make, until they are let go. now, peak: bytes.

    there: tensors that are there already, whose storages operations only look at or change.
    A storage may be emptied and filled again by no operation that is seen: `fully_shard` does so with what it
    gathers. So all are asked for their size before a peak is taken; `now` may be too large between.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._there = {place_of(tensor.untyped_storage()) for tensor in there}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = place_of(storage)
        if place in self._there:
            return
        if place not in self._known:
            self._known[place] = 0
            self._storages[place] = weakref.ref(storage)
            weakref.finalize(storage, self._drop, place)
        self._ask(place, storage)
        if self.now > self.peak:
            for other, found in list(self._storages.items()):
                if (there := found()) is not None:
                    self._ask(other, there)
            self.peak = max(self.peak, self.now)

    def _ask(self, place: int, storage: Any) -> None:
        size = storage.nbytes()
        self.now += size - self._known[place]
        self._known[place] = size

    def _drop(self, place: int) -> None:
        self.now -= self._known.pop(place, 0)
        self._storages.pop(place, None)


@dataclass(frozen=True)
class Sample:
    """A layout of a small GPT, and what was measured of it."""

    layers: int
    hidden: int
    heads: int
    pp: int
    tp: int
    dp: int
    rows: int
    batch: int
    sequence: int = 64
    vocabulary: int = 512

    @property
    def devices(self) -> int:
        return self.pp * self.tp * self.dp

    @property
    def microbatches(self) -> int:
        return self.batch // self.dp // self.rows


class _Layer(nn.Module):
    """One rank's part of a layer: heads and inner widths by `tp`."""

    def __init__(self, it: Sample) -> None:
        super().__init__()
        h, tp = it.hidden, it.tp
        self.heads, self.width = it.heads // tp, h // it.heads
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)
        self.qkv, self.out = nn.Linear(h, 3 * h // tp), nn.Linear(h // tp, h)
        self.up, self.down = nn.Linear(h, 4 * h // tp), nn.Linear(4 * h // tp, h)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        shape = rows, length, self.heads, self.width
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / self.width**0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(rows, length, -1))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return x


def stage_peak(it: Sample, stage: int) -> int:
    """Most bytes alive on a rank of a stage in one 1F1B step with Adam, in float32: forwards in flight, then
    backwards and forwards in turn, then the update, all executed.

    Tensor parallelism is this rank's part alone: what its all-reduces hold is not counted.
    """
    last = it.pp - 1
    with LiveBytes() as live:
        layers = nn.ModuleList(_Layer(it) for _ in range(it.layers // it.pp))
        words = nn.Embedding(it.vocabulary // it.tp, it.hidden) if stage == 0 else None
        head = nn.Linear(it.hidden, it.vocabulary // it.tp) if stage == last else None
        parts = nn.ModuleList([layers, *(p for p in (words, head) if p is not None)])
        optimizer = torch.optim.Adam(parts.parameters())

        def forward() -> Tensor:
            if words is not None:
                x = words(torch.zeros(it.rows, it.sequence, dtype=torch.int64))
            else:
                x = torch.zeros(it.rows, it.sequence, it.hidden, requires_grad=True)
            for layer in layers:
                x = layer(x)
            if head is None:
                return x
            logits = head(x).flatten(0, 1)
            return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))

        def backward(y: Tensor) -> None:
            y.backward(torch.ones_like(y))

        flight = [forward() for _ in range(min(it.pp - stage, it.microbatches))]
        for _ in range(it.microbatches - len(flight)):
            backward(flight.pop(0))
            flight.append(forward())
        while flight:
            backward(flight.pop(0))
        optimizer.step()
        return live.peak


def measured_peak(it: Sample) -> int:
    """Of the fullest of the first and the last stage."""
    return max(stage_peak(it, stage) for stage in {0, it.pp - 1})
