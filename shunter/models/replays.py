"""Steps of a token a row on a GPU, recorded once as CUDA graphs and replayed.

A step of a small model is several hundred kernels of a few microseconds each, and a processor takes longer to
ask for them than a GPU to compute them. A graph asks for all at once. It is of fixed sizes and reads its
numbers from fixed places, so rows and blocks are counted up to one of a few sizes: rows that are nobody's are
copies of the first one, and write what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.models.decode import Stepper
from shunter.models.paged import PagedCache

Work = Callable[[], None]
Recorder = Callable[[Work], Work]


def roomy(count: int) -> int:
    """The next of two numbers an octave: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << max(0, count.bit_length() - 1)
    return next(size for size in (power, power * 3 // 2, 2 * power) if size >= count)


class FixedPass:
    """A step of `rows` rows of at most `blocks` blocks of a cache, whose numbers stand in one place."""

    def __init__(self, cache: PagedCache, rows: int, blocks: int) -> None:
        self.cache, self.rows = cache, rows
        cuda = cache.device.type == "cuda"
        self.host = torch.zeros(rows * (3 + blocks), dtype=torch.int64, pin_memory=cuda)
        self.numbers = self.host.to(cache.device, copy=True)
        self.filled = self.host.numpy()
        self.tokens, steps, self.slots = self.numbers[: 3 * rows].view(3, rows)
        self._positions, self.blocks = steps[:, None], self.numbers[3 * rows :]
        self._table = self.filled[3 * rows :].reshape(rows, blocks)
        self._bias: Tensor | None = None

    def fill(self, steps: Mapping[int, int]) -> None:
        """The tokens that follow rows of the cache; there is room for them."""
        cache, size, rows = self.cache, self.cache.size, self.rows
        for at, (row, token) in enumerate(steps.items()):
            length, held = cache.lengths[row], cache.rows[row]
            slot = held[length // size] * size + length % size
            self.filled[at], self.filled[rows + at], self.filled[2 * rows + at] = token, length, slot
            # What a shorter row lacks is read from its own first block, and hidden.
            self._table[at, : len(held)] = held
            self._table[at, len(held) :] = held[0]
        count = len(steps)
        self.filled[: 3 * rows].reshape(3, rows)[:, count:] = self.filled[: 3 * rows : rows][:, None]
        self._table[count:] = self._table[0]
        self.numbers.copy_(self.host, non_blocking=True)

    # As a cache is asked.

    def positions(self, count: int) -> Tensor:
        """[N, 1]: of all rows."""
        assert count == 1
        return self._positions

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cache.rope(positions, dtype)

    def mask(self, count: int) -> None:
        """None, as who sees what is in `see`; what all layers add there is made here."""
        window = self.cache.spec.sliding_window
        length = len(self.blocks) // self.rows * self.cache.size
        at = torch.arange(length, device=self.cache.device)
        seen = at <= self._positions
        if window is not None:
            seen &= at > self._positions - window
        zeros = torch.zeros(seen.shape, dtype=self.cache.store.dtype, device=self.cache.device)
        self._bias = zeros.masked_fill_(~seen, -torch.inf)[:, None, None]

    def advance(self, count: int) -> None:
        """Lengths are counted when all is replayed."""

    def see(self, layer: int, heads: Tensor) -> Tensor:
        """Attention [N, H d] of queries, keys and values [N, H + 2 K, d]; the latter two are stored first."""
        spec, held, rows = self.cache.spec, self.cache.layers[layer], self.rows
        held.index_copy_(0, self.slots, heads[:, spec.num_heads :].flatten(1).to(held.dtype))
        read = held.view(self.cache.blocks, -1).index_select(0, self.blocks)
        k, v = read.view(rows, -1, 2, spec.num_kv_heads, spec.head_dim).to(heads.dtype).permute(2, 0, 3, 1, 4)
        q = heads[:, : spec.num_heads].view(rows, spec.num_kv_heads, -1, spec.head_dim)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias).reshape(rows, -1)


@dataclass
class _Recorded:
    fixed: FixedPass
    replay: Work


class Replays:
    """Steps of one model over one cache, each size recorded when it first comes.

    The weights, and what the stepper made of them, must stay where they are; their values may change.
    """

    def __init__(self, stepper: Stepper, cache: PagedCache, recorder: Recorder | None = None) -> None:
        """recorder: does a work once and returns what does it again; default: a CUDA graph."""
        self.stepper, self.cache = stepper, cache
        self.record = recorder or CudaRecorder(cache.device)
        self.made: dict[tuple[int, int], _Recorded] = {}
        self._logits = torch.empty(0)

    def read(self, steps: Mapping[int, int]) -> Tensor:
        """Logits [rows, V] after a token each, in their order; good until the next call. There is room."""
        cache = self.cache
        key = roomy(len(steps)), roomy(max(len(cache.rows[row]) for row in steps))
        if len(self._logits) < key[0]:
            self._grow(key[0])
        found = self.made.get(key)
        if found is None:
            fixed = FixedPass(cache, *key)
            fixed.fill(steps)
            found = self.made[key] = _Recorded(fixed, self.record(lambda: self._compute(fixed)))
        else:
            found.fixed.fill(steps)
            found.replay()
        for row in steps:
            cache.lengths[row] += 1
        return self._logits[: len(steps)]

    def _compute(self, fixed: FixedPass) -> None:
        self._logits[: fixed.rows] = self.stepper.logits(self.stepper.hidden(fixed.tokens, fixed))

    def _grow(self, rows: int) -> None:
        """One place for the logits of all sizes. Those recorded for a smaller one are given up."""
        dtype = self.stepper.dtype
        self._logits = torch.empty(rows, self.cache.spec.vocab_size, dtype=dtype, device=self.cache.device)
        self.made.clear()


class CudaRecorder:
    """Records as CUDA graphs, which share their memory: one at a time is replayed."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self.device = device

    def __call__(self, work: Work) -> Work:
        """Does the work, and records it as it is done once more; that runs when it is replayed."""
        with torch.cuda.device(self.device):
            outside = torch.cuda.current_stream()
            self.stream.wait_stream(outside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self.stream):
                work()  # what libraries set up at their first call cannot be recorded
                # Other threads of the process may use the device meanwhile.
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
            outside.wait_stream(self.stream)
        return graph.replay
