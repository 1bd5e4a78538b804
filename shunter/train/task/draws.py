"""Random numbers of a person's task: each example has its own, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shunter.config.seed import derive_seed
from shunter.parallel.generic.trial import undropped
from shunter.parallel.mesh import Peers


class Draws:
    """Streams keyed by (seed, step, example): the same numbers in any batch, on any number of processes, and
    after any resume.

    examples: numbers of the batch's examples, in order. The n-th call for one batch is a stream of its own.
    purpose: such as which rollout of the step it is; "" in training and evaluation.
    """

    def __init__(
        self, seed: int, step: int, examples: Sequence[int], device: torch.device, purpose: str = ""
    ) -> None:
        self.purpose = [purpose] if purpose else []
        self.seed, self.step, self.examples, self.device = seed, step, list(examples), device
        self.calls = 0

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape], standard normal."""
        return self._rows(lambda draw: torch.randn(shape, generator=draw, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] in [0, 1)."""
        return self._rows(lambda draw: torch.rand(shape, generator=draw, device=self.device))

    def integers(self, high: int, *shape: int) -> Tensor:
        """[B, *shape] in [0, high)."""
        return self._rows(lambda draw: torch.randint(high, shape, generator=draw, device=self.device))

    def _rows(self, make: Any) -> Tensor:
        self.calls += 1
        return torch.stack([make(self.generator(example, self.calls)) for example in self.examples])

    def generator(self, *keys: int | str) -> torch.Generator:
        """A stream of one's own under this step."""
        return torch.Generator(self.device).manual_seed(self._seed(*keys))

    def uniform_at_once(self, count: int, *keys: int | str) -> Tensor:
        """[B, count] of whole numbers in [0, 2^24): element i of an example's stream is a function of its key
        and of i alone, so that all are made together, on whatever device."""
        seeds = [self._seed(example, *keys) for example in self.examples]
        start = torch.tensor([_signed(seed) for seed in seeds], device=self.device)
        return _mixed(start[:, None], torch.arange(1, count + 1, device=self.device))

    def _seed(self, *keys: int | str) -> int:
        return derive_seed(self.seed, "task", self.step, *self.purpose, *keys)


class Dropout(TorchFunctionMode):
    """Within, dropout takes its masks from `draws`, example by example.

    peers: among which a dropped tensor may be a part of what one process has; cuts: for the n-th dropout of a
    pass the dim that is cut, counted from the end, as `Shapes` found it; rows: the dim that examples are
    along, None where there is none; 0 where it is not known. Dropout inside a fused attention
    kernel (`scaled_dot_product_attention`) draws from torch's own generator: a draw for each batch.
    """

    def __init__(
        self,
        draws: Draws,
        peers: Peers | None = None,
        cuts: Sequence[int | None] = (),
        rows: Sequence[int | None] = (),
    ) -> None:
        super().__init__()
        self.draws, self.peers, self.cuts, self.rows = draws, peers or Peers.alone(), cuts, rows
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is not torch.nn.functional.dropout:
            return func(*args, **named)
        x, p, training = _called(args, named)
        if not training or not p:
            return func(*args, **named)
        place, self.count = self.count, self.count + 1
        mask = self._mask(x, p, place)
        return x * mask if mask is not None else func(*args, **named)

    def _mask(self, x: Tensor, p: float, place: int) -> Tensor | None:
        """Scaled, of x's shape; None where no dim is examples, nor examples times something."""
        rows = len(self.draws.examples)
        along = self.rows[place] if place < len(self.rows) else 0
        if along is None or along >= x.ndim or x.shape[along] % rows:
            return None
        shape = list(x.shape)
        shape[along] //= rows
        cut = self.cuts[place] if place < len(self.cuts) else None
        whole = list(shape)
        if cut is not None:
            whole[cut] *= self.peers.size
        drawn = self.draws.uniform_at_once(math.prod(whole), "dropout", place)
        mask = (drawn >= round(p * (1 << BITS))).view(rows, *whole)
        if cut is not None:
            mask = mask.chunk(self.peers.size, cut)[self.peers.index]
        return mask.movedim(0, along).reshape(x.shape).to(x.dtype) / (1 - p)


BITS = 24


def _mixed(start: Tensor, counts: Tensor) -> Tensor:
    """The top BITS of splitmix64 (Steele, Lea and Flood 2014), which `start` seeds and `counts` numbers."""
    x = start + counts * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _right(x, 27)) * _signed(0x94D049BB133111EB)
    return _right(x ^ _right(x, 31), 64 - BITS)


def _signed(number: int) -> int:
    """The same 64 bits as torch has them, whose products wrap round."""
    return number - (1 << 64) if number >> 63 else number


def _right(x: Tensor, bits: int) -> Tensor:
    """Shifted, with zeros from the left: int64's own shift would repeat the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class Shapes(TorchFunctionMode):
    """Within, the shapes that go through dropout are noted, and nothing is dropped. others: names of
    functions that draw for a whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.others: set[str] = set()
        self.seen: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.dropout:
            x, p, training = _called(args, kwargs or {})
            if training and p:
                self.seen.append(tuple(x.shape))
        else:
            self._other(func, args, kwargs or {})
        return undropped(func, args, kwargs)

    def _other(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        name = getattr(func, "__name__", "")
        if func is torch.nn.functional.scaled_dot_product_attention:
            if named.get("dropout_p", args[4] if len(args) > 4 else 0.0):
                self.others.add(name)
        elif name in DRAWING and named.get("generator") is None and named.get("training", True) is not False:
            self.others.add(name)


# Of torch's functions those whose numbers belong to a batch, not to its examples.
DRAWING = frozenset(
    {
        "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d",
        "bernoulli", "bernoulli_", "multinomial", "normal", "normal_", "uniform_", "exponential_", "rand",
        "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "gumbel_softmax",
    }
)  # fmt: skip


def example_dims(
    few: Sequence[tuple[int, ...]], more: Sequence[tuple[int, ...]], rows: tuple[int, int]
) -> list[int | None]:
    """For each dropout of a pass the dim that grows with the number of examples, `rows[0]` and `rows[1]`."""
    found: list[int | None] = []
    for a, b in zip(few, more, strict=False):
        grown = [dim for dim, (x, y) in enumerate(zip(a, b, strict=False)) if x * rows[1] == y * rows[0]]
        differ = [dim for dim in range(min(len(a), len(b))) if a[dim] != b[dim]]
        found.append(differ[0] if len(a) == len(b) and len(differ) == 1 and differ[0] in grown else None)
    return found


def cut_dims(
    whole: Sequence[tuple[int, ...]], part: Sequence[tuple[int, ...]], parts: int
) -> list[int | None]:
    """For each dropout of a pass the dim, counted from the end, along which this rank has a part."""
    found: list[int | None] = []
    for a, b in zip(whole, part, strict=False):
        differ = [dim for dim in range(-min(len(a), len(b)), 0) if a[dim] != b[dim]]
        fits = len(a) == len(b) and len(differ) == 1 and a[differ[0]] == parts * b[differ[0]]
        found.append(differ[0] if fits else None)
    return found


def _called(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, float, bool]:
    """Input, p and training of a call of `dropout`."""
    given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | named
    return given["input"], float(given.get("p", 0.5)), bool(given.get("training", True))
