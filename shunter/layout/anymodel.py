"""The plan for any model: what each rank holds of each weight, why, and what is to be known about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from shunter.config.errors import ShunterError
from shunter.layout.fused import FUSED, Heads
from shunter.layout.piece import Piece
from shunter.layout.rules import KERNEL, Rule, Weight, chosen, overridden, rules


@dataclass(frozen=True)
class Cut:
    """dim: as the weight is stored; None: whole on every rank. blocks: sizes of the projections along it,
    each cut by itself. output: whether it is the dim of a product's outputs."""

    dim: int | None
    blocks: tuple[int, ...] = ()
    output: bool = False

    def piece(self, shape: Sequence[int], index: int, parts: int) -> Piece:
        """What rank `index` of `parts` holds."""
        whole = Piece.full(shape)
        return whole if self.dim is None else whole.share(self.dim, index, parts, self.blocks or None)


WHOLE = Cut(None)
USEFUL = 0.5  # of the elements: what tp has to cut at least


@dataclass(frozen=True)
class Plan:
    """weights, cuts: by name. rules: as they were applied. notes: sentences for people."""

    parts: int
    weights: Mapping[str, Weight]
    cuts: Mapping[str, Cut]
    rules: Sequence[Rule]
    heads: Heads
    notes: Sequence[str] = field(default_factory=list)
    chosen: Mapping[str, Rule] = field(default_factory=dict)  # of each weight

    def piece(self, name: str, index: int) -> Piece:
        return self.cuts[name].piece(self.weights[name].shape, index, self.parts)

    @property
    def elements(self) -> int:
        """Of the whole model."""
        return sum(prod(weight.shape) for weight in self.weights.values())

    @property
    def held(self) -> int:
        """Elements on one rank: on each the same."""
        return sum(
            prod(weight.shape) // (1 if self.cuts[name].dim is None else self.parts)
            for name, weight in self.weights.items()
        )

    def data(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "parts": self.parts,
            "parameters": self.elements,
            "held": self.held,
            "rules": [{"layer": r.told, "dim": r.dim, "why": r.why} for r in self.rules],
            "weights": {
                name: {
                    "shape": list(w.shape),
                    "dim": self.cuts[name].dim,
                    "blocks": list(self.cuts[name].blocks),
                }
                for name, w in self.weights.items()
            },
            "notes": list(self.notes),
        }


def plan(
    weights: Sequence[Weight],
    parts: int,
    heads: Heads | None = None,
    overrides: Iterable[str] = (),
    *,
    published: bool = False,
) -> Plan:
    """Cut weights into `parts` (arXiv 2310.16355). A bias goes with the outputs of its product.

    overrides: see `rules.overridden`. published: kernels exactly as in the authors' code. Raises ShunterError
    for an override that matches nothing or does not divide.
    """
    if parts < 1:
        raise ShunterError(f"{parts} parts: a model has at least 1")
    heads = heads or Heads()
    found = overridden(rules(weights, parts, published=published), weights, overrides)
    placed = chosen(found, weights)
    cuts: dict[str, Cut] = {}
    notes: list[str] = []
    for weight in weights:
        cuts[weight.name] = _cut(weight, placed[weight.name], parts, heads, notes)
    named = {weight.name: weight for weight in weights}
    for weight in weights:
        product = f"{weight.module}.weight" if weight.module else "weight"
        goes_with = cuts.get(product, WHOLE)
        if weight.name.rpartition(".")[2] != "bias" or not goes_with.output or goes_with.dim is None:
            continue
        if weight.shape == (named[product].shape[goes_with.dim],):
            cuts[weight.name] = Cut(0, goes_with.blocks, True)
    if parts > 1 and heads.queries and not heads.legal(parts):
        keys = f", {heads.keys} of keys and values," if heads.keys != heads.queries else ""
        notes.append(
            f"{heads.queries} heads{keys} cannot be cut into {parts}: attention goes product by product; "
            f"{heads.nearest(parts)} parts would keep heads whole."
        )
    return Plan(parts, named, cuts, found, heads, list(dict.fromkeys(notes)), placed)


def check_useful(found: Plan, other: Callable[[int], Plan]) -> None:
    """Raise ShunterError for parts that leave more than half of the elements whole on every rank. other: the
    plan of another number of parts."""
    if found.parts == 1 or _share(found) >= USEFUL:
        return
    near = sorted(range(2, 4 * found.parts), key=lambda parts: (abs(parts - found.parts), parts))
    good = next((parts for parts in near if _share(other(parts)) >= USEFUL), None)
    raise ShunterError(
        f"tp={found.parts} cuts {100 * _share(found):.0f} % of the weights: "
        "every process would do most of the same work",
        mend=f"Use tp={good}, or dp."
        if good is not None
        else "Use dp: the sizes of this model do not divide.",
    )


def _share(found: Plan) -> float:
    """Of the elements, those that are cut."""
    cut = sum(prod(w.shape) for name, w in found.weights.items() if found.cuts[name].dim is not None)
    return cut / max(found.elements, 1)


def _cut(weight: Weight, rule: Rule, parts: int, heads: Heads, notes: list[str]) -> Cut:
    if rule.dim is None or parts == 1:
        return WHOLE
    dim = weight.dims[rule.dim]
    if weight.shape[dim] % parts:
        raise ShunterError(
            f"{weight.name}: {weight.shape[dim]} along dim {dim} cannot be cut into {parts}",
            mend="Choose another dim, or whole.",
        )
    output = weight.path[-1] == KERNEL and rule.dim == len(weight.shape) - 1
    layer = weight.module.rpartition(".")[2]
    if not output or layer not in FUSED:
        return Cut(dim, (), output)
    blocks = heads.blocks(layer, weight.shape[dim], parts)
    if blocks is None:
        notes.append(
            f"{layer} holds several projections, which {parts} does not divide one by one: it stays whole."
        )
        return WHOLE
    return Cut(dim, tuple(blocks) if len(blocks) > 1 else (), output)
