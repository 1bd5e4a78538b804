"""Keys and values in blocks of a few tokens, so that texts of any length come and go.

After arXiv 2309.06180 (PagedAttention), in plain torch. A layer reads the blocks of rows of like length in
one copy, in the order of their tokens, and attends to the copy: on a CPU, whose caches hold it, that is
faster than products with thousands of blocks where they lie. What is copied is gone after the layer.
"""

from __future__ import annotations

import functools
import heapq
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.models.cache import Places, zeros
from shunter.models.decode import Stepper
from shunter.models.decoder import Decoder
from shunter.models.footprint import AT_ONCE, SPARE
from shunter.models.rope import tables
from shunter.models.spec import DecoderSpec

# Bytes of keys and values that are copied and read in the time that another group of rows takes besides.
APART = {"cpu": 600_000}
APART_ELSEWHERE = 20_000_000


def kernel_of(cache: PagedCache) -> Callable[..., Tensor] | None:
    """Attention to blocks where they lie (`shunter.models.paged_kernel`); None where there is none for such
    a cache."""
    if cache.device.type != "cuda" or cache.store.dtype == torch.float64:
        return None
    spec = cache.spec
    return _kernel(cache.device, cache.store.dtype, spec.num_heads // spec.num_kv_heads, spec.head_dim)


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype, group: int, width: int) -> Callable[..., Tensor] | None:
    try:
        from shunter.models.paged_kernel import attend

        heads = torch.zeros(1, group + 2, width, dtype=dtype, device=device)
        table = torch.zeros(1, 1, dtype=torch.int64, device=device)
        attend(heads, heads[0, group:].reshape(1, -1), table, table[0], group, 1)
    except Exception as error:  # triton compiles at the first call, and raises what its compilers do
        warnings.warn(
            f"blocks are copied before they are read, as the kernel for that does not work here ({error})",
            stacklevel=2,
        )
        return None
    return attend


class OutOfBlocks(Exception):
    """There is no free block."""


class PagedCache:
    """[layers, blocks, size, 2 num_kv_heads, head_dim]: keys, then values of each token; and whose each is.

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
        # Zeros: what a block held before it was written is multiplied by a share of 0, and must be finite.
        self.store = zeros(
            (spec.num_layers, blocks, size, 2 * spec.num_kv_heads, spec.head_dim), dtype, device
        )
        self.layers = [layer.view(blocks * size, -1) for layer in self.store]
        self.spec, self.blocks, self.size, self.device = spec, blocks, size, torch.device(device)
        self.free = list(range(blocks))  # a heap: low numbers first, so that those in use lie together
        self.rows: list[list[int]] = []
        self.lengths: list[int] = []
        self._rope: tuple[Tensor, Tensor] | None = None
        self._read = torch.empty(0, dtype=dtype, device=device)

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
        """A new row with room for its first tokens, which a `Pass` writes; returns its number."""
        if self.needed(tokens) > len(self.free):
            raise OutOfBlocks
        self.rows.append([heapq.heappop(self.free) for _ in range(self.needed(tokens))])
        self.lengths.append(tokens)
        return len(self.rows) - 1

    def fork(self, row: int, tokens: int) -> int:
        """A new row with room for so many tokens, with which this one begins too. All of them but the last
        are copied, by whole blocks; the last is to be computed. Returns its number."""
        new = self.add(tokens)
        self.lengths[new] = tokens - 1
        count = self.needed(tokens - 1)
        at = [self.rows[each][:count] for each in (row, new)]
        here, there = (torch.tensor(blocks, dtype=torch.int64, device=self.device) for blocks in at)
        self.store.index_copy_(1, there, self.store.index_select(1, here))
        return new

    def grow(self, row: int) -> None:
        """Room for one more token of a row."""
        if self.lengths[row] == len(self.rows[row]) * self.size:
            if not self.free:
                raise OutOfBlocks
            self.rows[row].append(heapq.heappop(self.free))

    def grow_all(self) -> bool:
        """Room for one more token of each row; False, and nothing done, where there is none for all."""
        size = self.size
        full = [
            held for length, held in zip(self.lengths, self.rows, strict=True) if length == len(held) * size
        ]
        if len(full) > len(self.free):
            return False
        for held in full:
            held.append(heapq.heappop(self.free))
        return True

    def remove(self, rows: Sequence[int]) -> None:
        """These rows give their blocks back; those after them move up."""
        for row in sorted(rows, reverse=True):
            for block in self.rows.pop(row):
                heapq.heappush(self.free, block)
            del self.lengths[row]

    def read(self, layer: int, blocks: Tensor) -> Tensor:
        """A copy [len(blocks) size, 2 K d] of these blocks, good until the next one: memory that is new would
        be cleared by the system first, which takes several times as long as the copy."""
        held = self.layers[layer].view(self.blocks, -1)
        numbers = len(blocks) * held.shape[1]
        if len(self._read) < numbers:
            self._read = held.new_empty(int(SPARE * numbers))
        found = self._read[:numbers].view(len(blocks), -1)
        torch.index_select(held, 0, blocks, out=found)
        return found

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, d / 2] from a table of all positions, which is made once."""
        if self._rope is None or self._rope[0].dtype != dtype:
            steps = torch.arange(self.spec.max_positions, device=self.device)
            cos, sin = tables(self.spec, steps[None], dtype, self.spec.max_positions)
            self._rope = (cos[0, 0], sin[0, 0])
        cos, sin = self._rope
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Texts of one length that are read whole: their tokens from `begin` on."""

    begin: int
    count: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of like length that go on by a token each: tokens from `begin` on."""

    begin: int
    count: int
    length: int  # of the longest, the new token included
    blocks: Tensor  # [count * blocks of the longest]
    bias: Tensor | None  # [count, 1, 1, length]: 0 where a row looks, else -inf
    steps: Tensor | None = None  # [count]: of the new tokens, where a kernel reads the blocks


class Pass:
    """What one forward pass computes: texts that are new, whole, then the next token of other rows.

    order: rows of the cache as their logits come; a text that begins several rows is computed once.
    reads: tokens of the cache that a layer reads, those included that only make rows of a group equally long.
    """

    def __init__(
        self,
        cache: PagedCache,
        texts: Mapping[tuple[int, ...], Sequence[int]],
        steps: Mapping[int, int],
        even: bool = False,
    ) -> None:
        """texts: with the rows that begin with each. steps: of the other rows, the tokens that follow; there
        is room for them. even: tokens that are nobody's make their number one of few (`even_number`)."""
        self.cache, self.reads, self.kernel = cache, 0, kernel_of(cache)
        self.order: list[int] = []
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        source: list[int] = []  # of what goes into each slot
        last: list[int] = []
        self.whole: list[_Whole] = []
        for length, alike in groupby(sorted(texts.items(), key=lambda one: len(one[0])), lambda o: len(o[0])):
            some = list(alike)
            self.whole.append(_Whole(len(ids), len(some), length, self._causal(length)))
            for text, rows in some:
                for row in rows:
                    slots += self._slots(row, length)
                    source += range(len(ids), len(ids) + length)
                    last.append(len(ids) + length - 1)
                self.order += rows
                ids += text
                positions += range(length)
        self.steps = sorted(steps, key=lambda row: cache.lengths[row])
        begin = len(ids)
        for row in self.steps:
            length = cache.lengths[row]
            slots.append(cache.rows[row][length // cache.size] * cache.size + length % cache.size)
            positions.append(length)
            ids.append(steps[row])
        last += range(begin, len(ids))
        source += range(begin, len(ids))
        self.order += self.steps
        self.count = len(ids)
        self.idle = even_number(len(ids)) - len(ids) if even else 0
        ids += [0] * self.idle
        positions += [0] * self.idle
        device = cache.device
        self.tokens = torch.tensor(ids, device=device)
        self._positions = torch.tensor(positions, device=device)[:, None]
        self.slots = torch.tensor(slots, device=device)
        copied = len(slots) > self.count
        self.source = torch.tensor(source, device=device) if copied else None
        self.last = torch.tensor(last, device=device) if self.whole else None
        self.groups = [self._group(begin, first, end) for first, end in self._cut()]

    def _slots(self, row: int, length: int) -> list[int]:
        size = self.cache.size
        return [block * size + at for block in self.cache.rows[row] for at in range(size)][:length]

    def _causal(self, length: int) -> Tensor | None:
        """None: each token looks at all before it."""
        window = self.cache.spec.sliding_window
        if window is None or length <= window:
            return None
        steps = torch.arange(length, device=self.cache.device)
        gap = steps[:, None] - steps
        return (gap >= 0) & (gap < window)

    def _cut(self) -> list[tuple[int, int]]:
        """Where rows in the order of their lengths are parted, so that little is read that is nobody's."""
        cache = self.cache
        if not self.steps:
            return []
        if self.kernel is not None:
            return [(0, len(self.steps))]
        blocks = [len(cache.rows[row]) for row in self.steps]
        each = cache.layers[0][0].nbytes * cache.size
        apart = APART.get(cache.device.type, APART_ELSEWHERE) / each
        most = AT_ONCE.get(cache.device.type, math.inf) / each
        found: list[tuple[int, int]] = []
        open_ = [(0, len(blocks))]
        while open_:
            first, end = open_.pop()
            saved, cut = max(
                ((at - first) * (blocks[end - 1] - blocks[at - 1]), at) for at in range(first + 1, end + 1)
            )
            if saved > apart:
                open_ += [(cut, end), (first, cut)]
            else:
                found += _alike(first, end, max(1, int(min(end, most / blocks[end - 1]))))
        return found

    def _group(self, begin: int, first: int, end: int) -> _Group:
        cache, rows = self.cache, self.steps[first:end]
        lengths = [cache.lengths[row] + 1 for row in rows]
        longest, most = lengths[-1], len(cache.rows[rows[-1]])
        # What a shorter row lacks is read from its own first block, and hidden.
        table = [cache.rows[row] + cache.rows[row][:1] * (most - len(cache.rows[row])) for row in rows]
        self.reads += len(rows) * most * cache.size
        blocks = torch.tensor(table, device=cache.device)
        if self.kernel is not None:
            steps = torch.tensor(lengths, device=cache.device) - 1
            return _Group(begin + first, len(rows), longest, blocks, None, steps)
        bias, window = None, cache.spec.sliding_window
        if lengths[0] < longest or (window is not None and longest > window):
            steps, ends = torch.arange(longest), torch.tensor(lengths)[:, None]
            seen = steps < ends
            if window is not None:
                seen &= steps >= ends - window
            bias = torch.zeros(seen.shape, dtype=cache.store.dtype).masked_fill_(~seen, -torch.inf)
            bias = bias[:, None, None].to(cache.device)
        return _Group(begin + first, len(rows), longest, blocks.flatten(), bias)

    # As a cache is asked.

    def positions(self, count: int) -> Tensor:
        """[N, 1]: of all tokens."""
        assert count == 1
        return self._positions

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cache.rope(positions, dtype)

    def mask(self, count: int) -> None:
        """None: who sees what is in `see`."""

    def advance(self, count: int) -> None:
        """All is written in every layer. The lengths of new texts were counted when they were added."""
        for row in self.steps:
            self.cache.lengths[row] += count

    def see(self, layer: int, heads: Tensor) -> Tensor:
        """Attention [N, H d] of queries, keys and values [N, H + 2 K, d]; the latter two are stored first."""
        spec, cache = self.cache.spec, self.cache
        new = heads[: self.count, spec.num_heads :].flatten(1).to(cache.store.dtype)
        held = cache.layers[layer]
        held.index_copy_(0, self.slots, new if self.source is None else new.index_select(0, self.source))
        parts = [self._read_whole(one, heads) for one in self.whole]
        for group in self.groups:
            if self.kernel is not None:
                mine = heads[group.begin : group.begin + group.count]
                parts.append(
                    self.kernel(
                        mine, held, group.blocks, group.steps, spec.num_heads, cache.size, spec.sliding_window
                    )
                )
                continue
            read = cache.read(layer, group.blocks).view(group.count, -1, 2, spec.num_kv_heads, spec.head_dim)
            k, v = read[:, : group.length].to(heads.dtype).permute(2, 0, 3, 1, 4)
            # The query heads of a group stand as queries side by side; nothing is repeated.
            q = heads[group.begin : group.begin + group.count, : spec.num_heads].view(
                group.count, spec.num_kv_heads, -1, spec.head_dim
            )
            parts.append(
                F.scaled_dot_product_attention(q, k, v, attn_mask=group.bias).reshape(group.count, -1)
            )
        if self.idle:
            parts.append(heads.new_zeros(self.idle, parts[0].shape[1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read_whole(self, one: _Whole, heads: Tensor) -> Tensor:
        """Attention of texts of one length, each in itself."""
        spec = self.cache.spec
        tokens = one.count * one.length
        mine = heads[one.begin : one.begin + tokens].view(one.count, one.length, -1, spec.head_dim)
        q, k, v = mine.transpose(1, 2).split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        group = spec.num_heads // spec.num_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=one.mask, is_causal=one.mask is None)
        return y.transpose(1, 2).reshape(tokens, -1)


class Attends(Protocol):
    """A pass over a cache that knows who sees what."""

    def see(self, layer: int, heads: Tensor) -> Tensor:
        """Attention [N, H d] of queries, keys and values [N, H + 2 K, d]; the latter two are stored first."""


class PagedStepper(Stepper):
    """Passes of one model over a `PagedCache`."""

    def __init__(self, model: Decoder, rounded: torch.dtype | None = None) -> None:
        super().__init__(model, copy=True, rounded=rounded)
        # Experts count what they get, so there they get no tokens that are nobody's.
        self.even = self.copies and model.spec.experts is None

    def read(self, turn: Pass) -> Tensor:
        """Logits [rows, V] of a pass, in its order."""
        x = self.hidden(turn.tokens, turn)
        found = self.logits(x if turn.last is None else x.index_select(0, turn.last))
        return found[: len(turn.order)]

    def _see(self, number: int, heads: Tensor, mask: Tensor | None, cache: Places) -> Tensor:
        return cast(Attends, cache).see(number, heads)


def _alike(first: int, end: int, most: int) -> list[tuple[int, int]]:
    """Rows from `first` to `end` in parts of one size, of `most` rows each at the most."""
    parts = -(-(end - first) // most)
    edges = [first + (end - first) * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def even_number(count: int) -> int:
    """The next of eight numbers an octave: oneDNN makes a program for each number of rows that a product has,
    which takes longer than the product of a small model."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


def block_size(tokens: float) -> int:
    """Tokens a block for rows of about so many: a power of two, of which half is at most a tenth of a row."""
    return max(1, min(16, 1 << int(math.log2(max(1.0, tokens / 5)))))
