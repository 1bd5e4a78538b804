"""Keys and values of the tokens seen so far, preallocated."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from shunter.models.rope import tables
from shunter.models.spec import DecoderSpec


class Places(Protocol):
    """What knows where the next tokens stand."""

    def positions(self, count: int) -> Tensor: ...

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]: ...

    def mask(self, count: int) -> Tensor | None: ...

    def advance(self, count: int) -> None: ...


class Cache(Places, Protocol):
    """A store of keys and values, as a forward pass uses it; `KVCache` tells what each method does."""

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...


class KVCache:
    """[layers, B, num_kv_heads, max_length, head_dim] each for keys and values.

    Rows are aligned at their right end: all write the same slots in each step, which is one plain copy,
    and a row shorter than the longest begins at a later slot, hidden before it by a mask. A token's
    position is its slot minus the slot where its row begins, so padding is never seen.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        starts: Tensor,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """starts [B]: the slot where each row begins. max_length: slots in all."""
        shape = (spec.num_layers, len(starts), spec.num_kv_heads, max_length, spec.head_dim)
        self.spec, self.starts, self.max_length = spec, starts.to(device), max_length
        self.keys, self.values = (_room(shape, dtype, device) for _ in range(2))
        self.length = 0  # slots written
        self._slots = torch.arange(max_length, device=device)
        self._tables: tuple[Tensor, Tensor] | None = None
        self._look()

    def _look(self) -> None:
        self._layers = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))
        # A row that begins at slot 0 needs no mask; asked once, because asking waits for the device.
        self._padded = bool((self.starts > 0).any())
        self._hidden = self._slots < self.starts[:, None]  # [B, S]

    def positions(self, count: int) -> Tensor:
        """[B, count]: positions of the next `count` tokens; padding has 0."""
        slots = self._slots[self.length : self.length + count]
        return (slots - self.starts[:, None]).clamp_min(0)

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, head_dim / 2], looked up: a table of all positions is made once."""
        if self.spec.rope.scaling == "dynamic":
            # Depends on the present length; stored keys keep the stretch of their time, as everywhere.
            return tables(self.spec, positions, dtype, self.length + positions.shape[1])
        if self._tables is None or self._tables[0].dtype != dtype:
            cos, sin = tables(self.spec, self._slots[None], dtype, self.max_length)
            self._tables = (cos[0, 0], sin[0, 0])
        cos, sin = self._tables
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)

    def mask(self, count: int) -> Tensor | None:
        """[B or 1, 1, count, slots]: True where the next `count` tokens may look; None: everywhere, or,
        for the first tokens, plain causal."""
        window, end = self.spec.sliding_window, self.length + count
        narrow = window is not None and end > window
        if not self._padded and not narrow and (count == 1 or self.length == 0):
            return None
        seen = self._slots[:end]
        queries = self._slots[self.length : end, None]
        allowed = seen <= queries
        if narrow and window is not None:
            allowed = allowed & (queries - seen < window)
        if not self._padded:
            return allowed[None, None]
        # Padding looks at itself, so that its softmax is not empty.
        return (allowed & ~self._hidden[:, None, :end] | (seen == queries))[:, None]

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, Hkv, T, D] in the next slots; returns all up to the last one."""
        count, (k, v) = keys.shape[2], self._layers[layer]
        k.narrow(2, self.length, count).copy_(keys)
        v.narrow(2, self.length, count).copy_(values)
        return k.narrow(2, 0, self.length + count), v.narrow(2, 0, self.length + count)

    def advance(self, count: int) -> None:
        """The slots of `count` tokens are written in every layer."""
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows (finished ones leave the batch)."""
        kept = slice(0, self.length)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = _room((old.shape[0], len(rows), *old.shape[2:]), old.dtype, old.device)
            new[:, :, :, kept] = old[:, rows, :, kept]
            setattr(self, name, new)
        self.starts = self.starts[rows]
        self._look()


# Below this a cache fits the translation buffers anyway.
_LARGE = 4 * 2**20


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros; as `_room`, whose memory is only taken where it is written."""
    found = _room(shape, dtype, device)
    return found if _mapped(shape, dtype, device) else found.zero_()


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """An uninitialised tensor; a large one on a Linux CPU lies in huge pages.

    Every step reads the whole cache. In pages of 4 KiB the address translation costs a third of that.
    """
    if not _mapped(shape, dtype, device):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether it is mapped, and so begins as zeros."""
    large = math.prod(shape) * dtype.itemsize >= _LARGE
    return large and torch.device(device).type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE")
