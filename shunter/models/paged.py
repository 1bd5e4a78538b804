"""Keys and values in blocks of a few tokens, so that texts of any length come and go without copying.

After arXiv 2309.06180 (PagedAttention), in plain torch. A step reads every block where it lies: scores of all
blocks with their owners' queries in one batched product, then only the scores, which are small, are gathered
into rows for the softmax, and spread back over the blocks for the product with the values.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shunter.models.cache import Places
from shunter.models.decode import Stepper
from shunter.models.rope import tables
from shunter.models.spec import DecoderSpec


class OutOfBlocks(Exception):
    """There is no free block."""


class PagedCache:
    """[layers, blocks, num_kv_heads, size, head_dim] each for keys and values, and whose each block is.

    A row is a text that is being written; `rows[i]` lists its blocks, `lengths[i]` counts its tokens.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        blocks: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (spec.num_layers, blocks, spec.num_kv_heads, size, spec.head_dim)
        # Zeros: what a block held before it was written is multiplied by a share of 0, and must be finite.
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.spec, self.blocks, self.size, self.device = spec, blocks, size, torch.device(device)
        self.free = list(range(blocks))  # a heap: low numbers first, so that those in use lie together
        self.rows: list[list[int]] = []
        self.lengths: list[int] = []
        self._rope: tuple[Tensor, Tensor] | None = None
        self._changed = True

    @property
    def live(self) -> int:
        """Tokens stored."""
        return sum(self.lengths)

    @property
    def used(self) -> int:
        """Blocks taken."""
        return self.blocks - len(self.free)

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens of one row take."""
        return -(-tokens // self.size)

    def add(self, tokens: int) -> int:
        """A new row with room for its first tokens, which `Filling` writes; returns its number."""
        if self.needed(tokens) > len(self.free):
            raise OutOfBlocks
        self.rows.append([heapq.heappop(self.free) for _ in range(self.needed(tokens))])
        self.lengths.append(tokens)
        self._changed = True
        return len(self.rows) - 1

    def copy(self, rows: Sequence[int], into: Sequence[int]) -> None:
        """What rows begin with, into new ones, as many tokens as these have. By whole blocks: a row begins
        with one."""
        pairs = zip(rows, into, strict=True)
        blocks = [both for a, b in pairs for both in zip(self.rows[a], self.rows[b], strict=False)]
        here, there = (torch.tensor(each, device=self.device) for each in zip(*blocks, strict=True))
        for store in (self.keys, self.values):
            store[:, there] = store[:, here]

    def grow(self, row: int) -> None:
        """Room for one more token of a row."""
        if self.lengths[row] == len(self.rows[row]) * self.size:
            if not self.free:
                raise OutOfBlocks
            self.rows[row].append(heapq.heappop(self.free))
            self._changed = True

    def remove(self, rows: Sequence[int]) -> None:
        """These rows give their blocks back; those after them move up."""
        for row in sorted(rows, reverse=True):
            for block in self.rows.pop(row):
                heapq.heappush(self.free, block)
            del self.lengths[row]
        self._changed = True

    # What a step asks for.

    def begin(self) -> None:
        """Look up what all layers of the next step share. Every row has room for one more token."""
        if self._changed:
            if self.used * 2 < self._top():
                self._move_down()
            self._look()
            self._changed = False
        lengths = torch.tensor(self.lengths, device=self.device)
        self._lengths = lengths
        here = (lengths // self.size)[:, None]
        self._block = self._table.gather(1, here).squeeze(1)
        self._offset = lengths % self.size
        seen = self._places <= lengths[:, None]
        if self.spec.sliding_window is not None:
            seen &= self._places > lengths[:, None] - self.spec.sliding_window
        self._bias = torch.zeros(seen.shape, device=self.device).masked_fill_(~seen, -torch.inf)

    def positions(self, count: int) -> Tensor:
        """[B, 1]: of the next token of each row."""
        assert count == 1
        return self._lengths[:, None]

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, d / 2] from a table of all positions, which is made once."""
        if self._rope is None or self._rope[0].dtype != dtype:
            steps = torch.arange(self.spec.max_positions, device=self.device)
            cos, sin = tables(self.spec, steps[None], dtype, self.spec.max_positions)
            self._rope = (cos[0, 0], sin[0, 0])
        cos, sin = self._rope
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)

    def mask(self, count: int) -> None:
        """None: who sees what is in `see`."""

    def advance(self, count: int) -> None:
        """The next token of each row is written in every layer."""
        self.lengths = [length + count for length in self.lengths]

    def see(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the next k, v [B, K, d]; returns attention [B, K, G, d] of q, likewise."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self._block, :, self._offset] = k.to(keys.dtype)
        values[self._block, :, self._offset] = v.to(values.dtype)
        top, (rows, heads, group, width) = len(self._owner), q.shape
        size = self.size
        keys, values = keys[:top], values[:top]
        if keys.dtype != q.dtype:
            keys, values = keys.to(q.dtype), values.to(q.dtype)
        asked = (q * width**-0.5)[self._owner.clamp_max(rows - 1)].view(top * heads, group, width)
        scores = torch.bmm(asked, keys.view(top * heads, size, width).transpose(1, 2))
        lined = scores.view(top, heads, group, size)[self._table]  # [B, M, K, G, size]
        count = lined.shape[1]
        lined = lined.permute(0, 2, 3, 1, 4).reshape(rows, heads, group, count * size)
        shares = (lined + self._bias[:, None, None].to(lined.dtype)).softmax(dim=-1)
        spread = shares.view(rows, heads, group, count, size).permute(0, 3, 1, 2, 4)
        spread = spread.reshape(rows * count, heads, group, size)[self._place]
        parts = torch.bmm(spread.view(top * heads, group, size), values.view(top * heads, size, width))
        summed = q.new_zeros(rows + 1, heads * group * width)
        summed.index_add_(0, self._owner, parts.view(top, -1))
        return summed[:rows].view(rows, heads, group, width)

    def _top(self) -> int:
        return 1 + max((max(blocks) for blocks in self.rows), default=-1)

    def _look(self) -> None:
        """Whose each block is, and which blocks each row has, as tensors."""
        top, rows = self._top(), len(self.rows)
        most = max(map(len, self.rows))
        table = [blocks + [0] * (most - len(blocks)) for blocks in self.rows]
        owner, place = [rows] * top, [0] * top
        for row, blocks in enumerate(self.rows):
            for number, block in enumerate(blocks):
                owner[block], place[block] = row, row * most + number
        # What a block that is nobody's gets goes to a row that is thrown away.
        self._owner = torch.tensor(owner, device=self.device)
        self._place = torch.tensor(place, device=self.device)
        self._table = torch.tensor(table, device=self.device)
        self._places = torch.arange(most * self.size, device=self.device)[None]

    def _move_down(self) -> None:
        """Blocks move to the lowest free places: a step reads all up to the highest."""
        count = self.used
        holes = [block for block in sorted(self.free) if block < count]
        moved = {b: holes.pop() for blocks in self.rows for b in blocks if b >= count}
        if moved:
            old = torch.tensor(list(moved), device=self.device)
            new = torch.tensor(list(moved.values()), device=self.device)
            for store in (self.keys, self.values):
                store[:, new] = store[:, old]
        self.rows = [[moved.get(block, block) for block in blocks] for blocks in self.rows]
        self.free = list(range(count, self.blocks))


class Filling:
    """The cache of a forward pass over whole texts [B, T], padded on the right, that are new rows.

    copies: for each text, the rows of `cache` that begin with it.
    """

    def __init__(self, cache: PagedCache, copies: Sequence[Sequence[int]]) -> None:
        self.cache, size = cache, cache.size
        places, texts, numbers = [], [], []
        for text, rows in enumerate(copies):
            for row in rows:
                steps = torch.arange(cache.lengths[row])
                places.append(torch.tensor(cache.rows[row])[steps // size] * size + steps % size)
                texts.append(torch.full_like(steps, text))
                numbers.append(steps)
        place = torch.cat(places).to(cache.device)
        self.block, self.offset = place // size, place % size
        self.text, self.step = (torch.cat(x).to(cache.device) for x in (texts, numbers))

    def positions(self, count: int) -> Tensor:
        return torch.arange(count, device=self.cache.device)[None]

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cache.rope(positions, dtype)

    def mask(self, count: int) -> Tensor | None:
        """Padding stands where no token looks: plain causal, unless the window is narrower."""
        window = self.cache.spec.sliding_window
        if window is None or count <= window:
            return None
        steps = torch.arange(count, device=self.cache.device)
        gap = steps[:, None] - steps
        return ((gap >= 0) & (gap < window))[None, None]

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        for store, given in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            store[self.block, :, self.offset] = given[self.text, :, self.step].to(store.dtype)
        return keys, values

    def advance(self, count: int) -> None:
        """Nothing: the rows' lengths were counted when they were added."""


class PagedStepper(Stepper):
    """Steps of one model on a `PagedCache`."""

    def _see(
        self,
        number: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        cache: Places,
    ) -> Tensor:
        assert isinstance(cache, PagedCache)
        return cache.see(number, q, k, v)


def block_size(tokens: float) -> int:
    """Tokens a block for rows of about so many: a power of two, of which half is at most a tenth of a row."""
    return max(1, min(16, 1 << int(math.log2(max(1.0, tokens / 5)))))
