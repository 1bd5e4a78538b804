"""How adapters and packed weights may be cut over ranks: declarations, as `sharding` has them for the rest.

An adapter is cut as its projection is (Place in `adapter`). What is whole on all tensor ranks has a part of
its gradient on each: A of a projection cut by its output meets a part of B there, B of one cut by its input
meets a part of what A made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from shunter.layout.grid import Grid
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece, Range
from shunter.models.adapted_experts import OF, AdaptedExperts
from shunter.models.adapter import TARGETS, AdaptedLinear
from shunter.models.decoder import Decoder
from shunter.models.packed import PackedWeight


def adapted_holdings(decoder: Decoder, declared: Mapping[str, Holding], grid: Grid) -> dict[str, Holding]:
    """`declared`, of a decoder without adapters, with what its adapted projections have in a weight's place.

    The decoder's tensors are still whole.
    """
    found = dict(declared)
    for name, module in decoder.named_modules():
        if isinstance(module, AdaptedExperts):
            for matrix in OF:
                weight = found.pop(f"{name}.{matrix}")
                found |= _frozen(module.frozen[matrix], f"{name}.frozen.{matrix}", weight)
                for target in module.targets(matrix):
                    a, b = _expert_adapter(module, weight, target)
                    found[f"{name}.a.{target}"], found[f"{name}.b.{target}"] = a, b
        if not isinstance(module, AdaptedLinear):
            continue
        weight = found.pop(f"{name}.weight")
        found |= _frozen(module.frozen, f"{name}.frozen", weight)
        for target, (begin, end) in module.bounds.items():
            a, b = _adapter(module, weight, target, begin, end, grid)
            found[f"{name}.a.{target}"], found[f"{name}.b.{target}"] = a, b
    return found


def place_packed(decoder: Decoder, declared: Mapping[str, Holding]) -> None:
    """Tell packed weights which part of them is here, once their tensors are cut; declared: as above."""
    for name, module in decoder.named_modules():
        if isinstance(module, AdaptedLinear) and isinstance(module.frozen, PackedWeight):
            module.frozen.place(declared[f"{name}.weight"].piece)
        elif isinstance(module, AdaptedExperts):
            for matrix, frozen in module.frozen.items():
                if isinstance(frozen, PackedWeight):
                    frozen.place(_flat(declared[f"{name}.{matrix}"].piece))


def _frozen(frozen: nn.Module, name: str, weight: Holding) -> dict[str, Holding]:
    """Of the tensors of a frozen weight, from that of the weight."""
    if not isinstance(frozen, PackedWeight):
        return {f"{name}.whole": weight}
    pieces = frozen.pieces(_flat(weight.piece))
    everywhere = ("scale", "mean")
    return {
        f"{name}.{part}": Holding(piece, weight.partial, () if part in everywhere else weight.cut)
        for part, piece in pieces.items()
    }


def _flat(piece: Piece) -> Piece:
    """Of [E, rows, columns] as [E * rows, columns]; other pieces as they are."""
    if len(piece.shape) == 2:
        return piece
    (number, rows, columns), (experts, held, across) = piece.shape, piece.ranges
    found = [
        (expert * rows + begin, expert * rows + end)
        for first, last in experts
        for expert in range(first, last)
        for begin, end in held
    ]
    return Piece.full((number * rows, columns)).take(0, *found).take(1, *across)


def _expert_adapter(module: AdaptedExperts, weight: Holding, target: str) -> tuple[Holding, Holding]:
    """Of A [E, r, columns] and of B [E, rows, r] of some experts, from that of their weight.

    Along etp, as along tp for other adapters: one of the two is cut, of the other each has a part of the
    gradient, since all etp ranks of an expert see the same tokens.
    """
    experts, rows, columns = weight.piece.ranges
    a, b = Piece.full(module.a[target].shape), Piece.full(module.b[target].shape)
    whole = Holding(a, (*weight.partial, "etp"), ("ep",))
    cut = Holding(a, weight.partial, weight.cut)
    if target == "down":
        return (
            replace(cut, piece=Piece(a.shape, (experts, a.ranges[1], columns))),
            replace(whole, piece=Piece(b.shape, (experts, *b.ranges[1:]))),
        )
    gate = tuple(part for held in rows if (part := _common(held, (0, b.shape[1]))))  # up is cut as gate is
    return (
        replace(whole, piece=Piece(a.shape, (experts, *a.ranges[1:]))),
        replace(cut, piece=Piece(b.shape, (experts, gate, b.ranges[2]))),
    )


def _adapter(
    module: AdaptedLinear, weight: Holding, target: str, begin: int, end: int, grid: Grid
) -> tuple[Holding, Holding]:
    """Of A [r, I] and of B [O, r], from that of the fused weight, whose rows [begin, end) are its."""
    a = Holding(Piece.full(module.a[target].shape), weight.partial)
    b = Holding(Piece.full(module.b[target].shape), weight.partial)
    if grid.tp == 1:
        return a, b
    summed = (*weight.partial, "tp")
    if TARGETS[target].cut == "input":
        columns = Piece(a.piece.shape, (a.piece.ranges[0], weight.piece.ranges[1]))
        return replace(a, piece=columns, cut=weight.cut), replace(b, partial=summed)
    rows = tuple(part for held in weight.piece.ranges[0] if (part := _common(held, (begin, end))))
    piece = Piece(
        b.piece.shape, (tuple((low - begin, high - begin) for low, high in rows), b.piece.ranges[1])
    )
    # Rows of the part before these, for what is said of the part's rows.
    before = sum(min(high, begin) - low for low, high in weight.piece.ranges[0] if low < begin)
    here = before, before + piece.local_shape[0]
    shared = tuple(
        replace(each, begin=both[0] - before, end=both[1] - before)
        for each in weight.shared
        if (both := _common((each.begin, each.end), here))
    )
    return replace(a, partial=summed), replace(b, piece=piece, cut=weight.cut, shared=shared)


def _common(one: Range, other: Range) -> Range | None:
    begin, end = max(one[0], other[0]), min(one[1], other[1])
    return (begin, end) if begin < end else None
