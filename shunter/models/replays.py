"""Steps of a token a row on a GPU, recorded once as CUDA graphs and replayed.

A step of a small model is several hundred kernels of a few microseconds each, and a processor takes longer to
ask for them than a GPU to compute them. A graph asks for all at once. It is of fixed sizes and reads its
numbers from fixed places, so rows and blocks are counted up to one of a few sizes: rows that are nobody's are
copies of the first one, and write what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.models.decode import Stepper
from shunter.models.paged import PagedCache, kernel_of

MOST = 64  # sizes that are kept recorded
NOBODY: tuple[list[int], int] = ([], 0)
Work = Callable[[], None]
Recorder = Callable[[Work], Work]
Pick = Callable[[Tensor, "Tensor | None"], tuple[Tensor, Tensor, Tensor]]


def roomy(count: int) -> int:
    """The next of two numbers an octave: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << max(0, count.bit_length() - 1)
    return next(size for size in (power, power * 3 // 2, 2 * power) if size >= count)


class FixedPass:
    """A step of `rows` rows of at most `blocks` blocks of a cache, whose numbers stand in one place."""

    def __init__(self, cache: PagedCache, rows: int, blocks: int) -> None:
        self.cache, self.rows = cache, rows
        self.kernel = kernel_of(cache)
        cuda = cache.device.type == "cuda"
        self.host = torch.zeros(rows * (4 + blocks), dtype=torch.int64, pin_memory=cuda)
        self.numbers = self.host.to(cache.device, copy=True)
        self.tokens, steps, self.slots, uniform = self.numbers[: 4 * rows].view(4, rows)
        self.steps, self.uniform = steps, uniform.view(torch.float64)
        self.table = self.numbers[4 * rows :].view(rows, blocks)
        filled = self.host.numpy()
        self._each = filled[: 4 * rows].reshape(4, rows)
        self._table = filled[4 * rows :].reshape(rows, blocks)
        self._uniform = self._each[3].view("float64")
        self._known = [NOBODY] * rows  # whose blocks stand in the table, and how many
        self._bias: Tensor | None = None

    def fill(self, steps: Mapping[int, int], uniforms: Sequence[float]) -> None:
        """The tokens that follow rows of the cache; there is room for them."""
        cache, size, rows, count = self.cache, self.cache.size, self.rows, len(steps)
        lengths = [cache.lengths[row] for row in steps]
        for at, row in enumerate(steps):
            held, (known, blocks) = cache.rows[row], self._known[at]
            if held is known and len(held) == blocks:
                continue  # a row's blocks change by a further one alone
            # What a shorter row lacks is read from its own first block, and hidden.
            self._table[at, : len(held)] = held
            self._table[at, len(held) :] = held[0]
            self._known[at] = held, len(held)
        each = self._each
        each[0, :count], each[1, :count] = list(steps.values()), lengths
        last = self._table[range(count), each[1, :count] // size]
        each[2, :count] = last * size + each[1, :count] % size
        self._uniform[: len(uniforms)] = uniforms
        each[:, count:] = each[:, :1]
        self._table[count:] = self._table[0]
        self._known[count:] = [NOBODY] * (rows - count)
        self.numbers.copy_(self.host, non_blocking=True)

    # As a cache is asked.

    def positions(self, count: int) -> Tensor:
        """[N, 1]: of all rows."""
        assert count == 1
        return self.steps[:, None]

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cache.rope(positions, dtype)

    def mask(self, count: int) -> None:
        """None, as who sees what is in `see`; what all layers add there is made here."""
        if self.kernel is not None:
            return
        window, steps = self.cache.spec.sliding_window, self.steps[:, None]
        at = torch.arange(self.table.shape[1] * self.cache.size, device=self.cache.device)
        seen = at <= steps
        if window is not None:
            seen &= at > steps - window
        zeros = torch.zeros(seen.shape, dtype=self.cache.store.dtype, device=self.cache.device)
        self._bias = zeros.masked_fill_(~seen, -torch.inf)[:, None, None]

    def advance(self, count: int) -> None:
        """Lengths are counted when all is replayed."""

    def see(self, layer: int, heads: Tensor) -> Tensor:
        """Attention [N, H d] of queries, keys and values [N, H + 2 K, d]; the latter two are stored first."""
        spec, held, rows = self.cache.spec, self.cache.layers[layer], self.rows
        held.index_copy_(0, self.slots, heads[:, spec.num_heads :].flatten(1).to(held.dtype))
        if self.kernel is not None:
            return self.kernel(
                heads, held, self.table, self.steps, spec.num_heads, self.cache.size, spec.sliding_window
            )
        read = held.view(self.cache.blocks, -1).index_select(0, self.table.flatten())
        k, v = read.view(rows, -1, 2, spec.num_kv_heads, spec.head_dim).to(heads.dtype).permute(2, 0, 3, 1, 4)
        q = heads[:, : spec.num_heads].view(rows, spec.num_kv_heads, -1, spec.head_dim)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias).reshape(rows, -1)


@dataclass(frozen=True)
class _Recorded:
    """found [3, N] float64: tokens, their log-probabilities, the best ones of their rows."""

    fixed: FixedPass
    replay: Work
    found: Tensor


class Replays:
    """Steps of one model over one cache, each size recorded when it first comes.

    The weights, and what the stepper made of them, must stay where they are; their values may change.
    """

    def __init__(self, stepper: Stepper, cache: PagedCache, pick: Pick, recorder: Recorder) -> None:
        """pick: chooses tokens, as `shunter.generate.sampling.pick`. recorder: does a work once and returns
        what does it again."""
        self.stepper, self.cache, self.pick, self.record = stepper, cache, pick, recorder
        self.made: dict[tuple[int, int], _Recorded] = {}

    def read(
        self, steps: Mapping[int, int], uniforms: Sequence[float]
    ) -> tuple[list[int], list[float], list[float]]:
        """What is picked after a token of each row, in their order. There is room. uniforms: to draw by; none
        where nothing is drawn."""
        cache = self.cache
        key = roomy(len(steps)), roomy(max(len(cache.rows[row]) for row in steps))
        found = self.made.get(key)
        if found is None:
            found = self._recorded(FixedPass(cache, *key), steps, uniforms)
            if len(self.made) == MOST:
                self.made.clear()
            self.made[key] = found
        else:
            found.fixed.fill(steps, uniforms)
            found.replay()
        for row in steps:
            cache.lengths[row] += 1
        tokens, logprobs, best = found.found[:, : len(steps)].tolist()
        return [int(token) for token in tokens], logprobs, best

    def _recorded(self, fixed: FixedPass, steps: Mapping[int, int], uniforms: Sequence[float]) -> _Recorded:
        """A step of this size, done once."""
        fixed.fill(steps, uniforms)
        found = fixed.uniform.new_empty(3, fixed.rows)
        uniform = fixed.uniform if uniforms else None

        def compute() -> None:
            logits = self.stepper.logits(self.stepper.hidden(fixed.tokens, fixed))
            found.copy_(torch.stack([each.double() for each in self.pick(logits, uniform)]))

        return _Recorded(fixed, self.record(compute), found)
