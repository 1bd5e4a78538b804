"""How adapters and packed weights may be cut over ranks: declarations, as `sharding` has them for the rest.

An adapter is cut as its projection is (Place in `adapter`). What is whole on all tensor ranks has a part of
its gradient on each: A of a projection cut by its output meets a part of B there, B of one cut by its input
meets a part of what A made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece, Range
from shunter.models.adapter import TARGETS, AdaptedLinear, FrozenWeight
from shunter.models.decoder import Decoder
from shunter.models.sharding import DATA


def adapted_holdings(decoder: Decoder, declared: Mapping[str, Holding], grid: Grid) -> dict[str, Holding]:
    """`declared`, of a decoder without adapters, with what its adapted projections have in a weight's place.

    The decoder's tensors are still whole. Raises ShunterError for packed weights over tensor ranks.
    """
    found = dict(declared)
    for name, module in decoder.named_modules():
        if not isinstance(module, AdaptedLinear):
            continue
        weight = found.pop(f"{name}.weight")
        if isinstance(module.frozen, FrozenWeight):
            found[f"{name}.frozen.whole"] = weight
        elif grid.tp > 1:
            raise ShunterError(
                f"weights held as {module.held} are not cut over tensor ranks yet",
                where="how.parallel.tp",
                mend="Set tp to 1, or adapter.quantise to bf16 or none.",
            )
        else:
            for part, tensor in module.frozen.named_parameters():
                found[f"{name}.frozen.{part}"] = Holding(Piece.full(tensor.shape), DATA)
        for target, (begin, end) in module.bounds.items():
            a, b = _adapter(module, weight, target, begin, end, grid)
            found[f"{name}.a.{target}"], found[f"{name}.b.{target}"] = a, b
    return found


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
