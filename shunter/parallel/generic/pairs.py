"""Which products may stand in a pair, and how a pair is switched on and off."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.parallel.generic.alike import described
from shunter.parallel.generic.collectives import take
from shunter.parallel.generic.products import Entrance, Product, Table, installed
from shunter.parallel.mesh import Peers
from shunter.private import parameters_of

# Whole numbers that code divides its activations by: how many heads, and how wide all heads are together.
_NO_COUNT = ("dim", "size", "group", "index", "idx", "mask")


@dataclass
class Pair:
    """Products whose outputs one other product takes in parts.

    path, inside: the smallest module that has them all. firsts: by their paths in it. tables: whose rows have
    a number for each head. heads: how many there are in all; 0 where none are known.
    """

    path: str
    inside: nn.Module
    firsts: Mapping[str, Product]
    second: Product
    second_path: str
    peers: Peers
    tables: Sequence[Table] = ()
    heads: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)  # with which it was switched on last
    forms: frozenset[Any] | None = None  # of calls for which it was tried; None: of any
    parted: bool = False  # whether a parameter's gradient is in parts only while it is on
    _undo: list[Any] = field(default_factory=list)
    _watched: bool = False
    _paused: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for pairs that compute the same with other weights."""
        return described(self.inside), tuple(self.firsts), self.second_path.removeprefix(self.path)

    @property
    def on(self) -> bool:
        return bool(self._undo)

    def ways(self) -> Iterator[Mapping[str, Any]]:
        """Numbers of the module that may have to be of this rank alone: none, heads, heads and widths, and
        the same in a `config` that it reads."""
        size = self.peers.size
        counts = {name: value // size for name, value in _counts(self.inside).items() if value % size == 0}
        width = parameters_of(self.second.module)["weight"].shape[self.second.cut.dim or 0]  # type: ignore[union-attr]
        widths = {
            name: value // size
            for name, value in _numbers(self.inside)
            if value == width * size and name not in counts and value % size == 0
        }
        yield {}
        if counts:
            yield counts
        if widths:
            yield counts | widths
        if (config := getattr(self.inside, "config", None)) is not None and hasattr(config, "__dict__"):
            own = copy.copy(config)
            for name, value in _counts(config).items():
                if value % size == 0:
                    setattr(own, name, value // size)
            yield {**counts, "config": own}

    def switch_on(self, numbers: Mapping[str, Any]) -> None:
        """Compute as a pair, with these numbers in the place of the module's own."""
        self.switch_off()
        self.numbers = dict(numbers)
        entrance = Entrance(self.peers)
        for product in (*self.firsts.values(), self.second):
            product.entrance = entrance
        for table in self.tables:
            table.sliced = True
        before = {name: getattr(self.inside, name) for name in numbers}
        for name, value in numbers.items():
            setattr(self.inside, name, value)
        self._undo = [before]
        if not self._watched:  # for good: a hook that goes while hooks run takes others with it
            self._watched = True
            self.inside.register_forward_pre_hook(self._enter, with_kwargs=True)
            self.inside.register_forward_hook(self._again, always_call=True)

    def switch_off(self) -> None:
        """Compute each product by itself."""
        if not self._undo:
            return
        (before,) = self._undo
        for name, value in before.items():
            setattr(self.inside, name, value)
        for product in (*self.firsts.values(), self.second):
            product.entrance = None
        for table in self.tables:
            table.sliced = False
        self._undo = []

    def _enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A call of another form than was tried: for as long as it takes, each product by itself."""
        if not self.on:
            return None
        if self.forms is None or form((args, named)) in self.forms:
            return self._take_heads(args, named)
        if self.parted and torch.is_grad_enabled():
            raise ShunterError(
                f"{self.path or 'the model'} is called in training in a way that was not tried before it",
                mend=f"Keep it whole: train.rules=['{self.second_path}=whole'], and what stands before it.",
            )
        self._paused = True
        self.switch_off()
        return None

    def _again(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._paused:
            self._paused = False
            self.switch_on(self.numbers)

    def _take_heads(
        self, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What is given for all heads, [B, heads, ..], such as T5's bias of positions: those of this rank."""

        def own(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim == 4 and self.heads and value.shape[1] == self.heads:
                return take(value, 1, self.peers)
            return value

        return tuple(map(own, args)), {name: own(value) for name, value in named.items()}


def form(tree: Any) -> Any:
    """What code may tell one call from another by: containers, flags, numbers, which tensors there are; not
    their sizes, for a pair before may leave heads in parts."""
    if isinstance(tree, Tensor):
        return "tensor", tree.ndim, tree.is_floating_point()
    if isinstance(tree, Mapping):
        return tuple((str(key), form(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree), tuple(form(value) for value in tree)
    plain = isinstance(tree, int | float | str | bool | None)
    return (type(tree), tree) if plain else type(tree)


def find(module: nn.Module, peers: Peers) -> list[Pair]:
    """Pairs that could be, by their sizes and where they stand; deepest first, none shares a product."""
    products = {name: each for name, each in installed(module) if isinstance(each, Product)}
    order = {name: place for place, name in enumerate(products)}
    inside: dict[str, list[str]] = {"": list(products)}  # path -> products at or below it
    for name in products:
        parts = name.split(".")
        for end in range(1, len(parts)):
            inside.setdefault(".".join(parts[:end]), []).append(name)
    seconds = [name for name, each in products.items() if not each.cut.output]
    taken: set[str] = set()
    found: list[Pair] = []
    for depth in range(max((name.count(".") for name in seconds), default=-1) + 1, -1, -1):
        for second in seconds:
            parts = second.split(".")[:-1]
            if second in taken or len(parts) < depth:
                continue
            path = ".".join(parts[:depth])
            below = [name for name in inside[path] if name not in taken]
            # Where several could take what comes out, each takes what stands before it.
            rivals = any(name != second and not products[name].cut.output for name in below)
            firsts = [
                name
                for name in below
                if products[name].cut.output and (not rivals or order[name] < order[second])
            ]
            if any(_fits(products[name], products[second]) for name in firsts):
                taken |= {second, *firsts}
                found.append(_pair(module, path, firsts, second, products, peers))
    return found


def _pair(
    module: nn.Module,
    path: str,
    firsts: Sequence[str],
    second: str,
    products: Mapping[str, Product],
    peers: Peers,
) -> Pair:
    inside = module.get_submodule(path)
    skip = len(path) + 1 if path else 0
    heads = max(_counts(inside).values(), default=0)
    heads = heads if heads > 1 and heads % peers.size == 0 else 0
    tables = [
        each
        for _, each in installed(inside)
        if isinstance(each, Table) and heads and each.module.embedding_dim == heads
    ]
    by_path = {name[skip:]: products[name] for name in firsts}
    return Pair(path, inside, by_path, products[second], second, peers, tables, heads)


def _fits(first: Product, second: Product) -> bool:
    """Whether the second's inputs may be the first's outputs, or one of up to three projections in them."""
    size = _size(second, second.cut.dim)
    outputs = _size(first, first.cut.dim)
    return outputs in (size, 2 * size, 3 * size) or any(
        size == block // first.peers.size for block in first.cut.blocks
    )


def _size(product: Product, dim: int | None) -> int:
    weight = parameters_of(product.module)["weight"]
    assert weight is not None
    assert dim is not None
    return int(weight.shape[dim])


def _counts(module: object) -> dict[str, int]:
    return {name: value for name, value in _numbers(module) if _is_count(name)}


def _is_count(name: str) -> bool:
    return "head" in name.lower() and not any(part in name.lower() for part in _NO_COUNT)


def _numbers(module: object) -> tuple[tuple[str, int], ...]:
    """Whole numbers that stand in the module itself."""
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if type(value) is int and not name.startswith("_")
    )
