"""Layouts that a model and its rows cannot have: refused in a sentence. Imports without torch."""

from __future__ import annotations

from itertools import pairwise

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.sharding import check, check_vocabulary
from shunter.models.spec import DecoderShape, DecoderSpec
from shunter.schedule.action import RECOMPUTE
from shunter.schedule.order import Order
from shunter.train.config import DropoutConfig, Parallel

WHERE = "how.parallel"


def check_layout(spec: DecoderSpec, parallel: Parallel, order: Order, row_length: int | None = None) -> None:
    """Raise ShunterError, with the nearest that can be. row_length: tokens, where that is known."""
    try:
        check(spec, parallel.grid, parallel.sequence)
    except ShunterError as error:
        raise ShunterError(error.what, where=error.where or WHERE, mend=error.mend) from None
    if order.stages > spec.num_layers:
        raise ShunterError(
            f"{spec.num_layers} layers cannot be cut into {order.stages} stages",
            where=WHERE,
            mend="Use fewer ranks or fewer chunks.",
        )
    if parallel.pad_experts and (spec.experts is None or spec.experts.capacity is None):
        raise ShunterError(
            "pad_experts fills experts up to their capacity, and "
            + ("the model has no experts" if spec.experts is None else "they have none"),
            where=WHERE,
            mend="Leave pad_experts out."
            if spec.experts is None
            else "Set experts.capacity, or leave it out.",
        )
    for action, seconds in (parallel.at_least or {}).items():
        if len(seconds) != order.stages or min(seconds, default=-1.0) < 0:
            raise ShunterError(
                f"at_least gives {action} {len(seconds)} times, and there are {order.stages} stages",
                where=WHERE,
                mend="Give each stage its seconds, 0 or more.",
            )
    if isinstance(parallel.cut, list):
        check_cut(parallel.cut, spec.num_layers)
    if parallel.layers:
        _check_layers(spec, parallel)
    if parallel.ends is not None:
        _check_ends(spec, parallel)
    if parallel.gather == "bf16" and order.stages > 1:
        raise ShunterError(
            "gather: bf16 would round gradients, which stages add up in the type of gathered weights",
            where=WHERE,
            mend="Leave gather out: with stages each weight is gathered once a step only.",
        )
    for name, chosen in (("recompute", parallel.recompute), ("offload", parallel.offload)):
        if isinstance(chosen, list):
            check_again(chosen, spec.num_layers, name)
    check_aside(parallel, order, spec.num_layers)
    if parallel.attention == "ulysses":
        for grid in (parallel.grid, *parallel.own_grids().values()):
            if grid.cp > 1:
                _check_heads(spec, grid)
    placement = order.placement
    ends = order.stages > 1 and placement[0] == placement[-1] and not order.collectives
    if ends and spec.tied and (parallel.ends_grid or parallel.grid).fsdp > 1:
        raise ShunterError(
            f"with {parallel.schedule} the first and the last stage are on one rank, and fsdp cannot shard "
            "the weight that they share (tied) for both",
            where=WHERE,
            mend="Use dp instead of fsdp, or a schedule whose stages run from the first rank to the last, "
            "such as 1f1b.",
        )
    if row_length is not None:
        for grid in (parallel.grid, *parallel.others):
            check_rows(grid, parallel.sequence, row_length)


def _check_layers(spec: DecoderSpec, parallel: Parallel) -> None:
    """Of layers with degrees of their own."""
    numbers = [number for each in parallel.layers or () for number in each.of]
    if wrong := [number for number in numbers if not 0 <= number < spec.num_layers]:
        raise ShunterError(
            f"layers names layer {wrong[0]} of {spec.num_layers}",
            where=WHERE,
            mend=f"Give numbers from 0 to {spec.num_layers - 1}.",
        )
    for name, why in (
        ("vocabulary", "vocabulary cuts embedding and head over all ranks of a pipeline of one layout"),
        ("pad_experts", "pad_experts takes it for granted that all layers see as many rows"),
    ):
        if getattr(parallel, name):
            raise ShunterError(why, where=WHERE, mend=f"Leave {name} or layers out.")
    for grid in parallel.own_grids().values():
        try:
            check(spec, grid, parallel.sequence)
        except ShunterError as error:
            raise ShunterError(error.what, where=f"{WHERE}.layers", mend=error.mend) from None


def _check_ends(spec: DecoderSpec, parallel: Parallel) -> None:
    """Of embedding and head with degrees of their own."""
    if parallel.vocabulary:
        raise ShunterError(
            "both vocabulary and ends say how embedding and head are laid out",
            where=WHERE,
            mend="Leave one of the two out.",
        )
    if (grid := parallel.ends_grid) is None:
        return
    try:
        check_vocabulary(spec, grid)
    except ShunterError as error:
        raise ShunterError(error.what, where=f"{WHERE}.ends", mend=error.mend) from None


def check_dropout(dropout: DropoutConfig | None, shape: DecoderShape | None) -> None:
    """Raise ShunterError for what a model cannot drop. shape: where it is known."""
    if dropout is not None and dropout.inner and shape is not None and shape.experts is not None:
        raise ShunterError(
            "inner would drop inside of experts, which is not there",
            where="train.dropout",
            mend="Use residual alone, which goes with experts.",
        )


def check_cut(cut: list[int], layers: int) -> None:
    """Raise ShunterError for bounds that are not layers in order."""
    if any(a >= b for a, b in pairwise([0, *cut, layers])):
        raise ShunterError(
            f"cut {cut} does not give every stage a layer of {layers}",
            where=WHERE,
            mend=f"Give rising numbers from 1 to {layers - 1}.",
        )


def check_again(chosen: list[int], layers: int, name: str = "recompute") -> None:
    """Raise ShunterError for numbers that are no layers, or twice the same. name: of the key."""
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(layers)):
        every = "full" if name == "recompute" else "true"
        raise ShunterError(
            f"{name} {chosen} does not name layers of {layers}",
            where=WHERE,
            mend=f"Name each once, from 0 to {layers - 1}, or write {every} for all.",
        )


def check_aside(parallel: Parallel, order: Order, layers: int) -> None:
    """Raise ShunterError for layers that are put aside and computed again, of which one is of no use."""
    aside = set(parallel.aside(layers))
    if not aside:
        return
    light = any(action.op == RECOMPUTE for actions in order.actions for action in actions)
    if light or parallel.recompute is True:
        raise ShunterError(
            "recompute: true keeps nothing between forward and backward that offload could put aside",
            where=WHERE,
            mend="Leave one of the two out, or give recompute the numbers of other layers.",
        )
    if both := sorted(aside & set(parallel.again(layers))):
        raise ShunterError(
            f"layer {both[0]} is both put aside and computed again",
            where=WHERE,
            mend="Name it in offload or in recompute.",
        )


def _check_heads(spec: DecoderSpec, grid: Grid) -> None:
    """ulysses spreads the query heads of a tensor rank evenly."""
    heads = spec.num_heads // grid.tp
    whose = " of a tensor rank" if grid.tp > 1 else ""
    if heads % grid.cp:
        legal = [degree for degree in range(1, heads + 1) if heads % degree == 0]
        nearest = min(legal, key=lambda degree: abs(degree - grid.cp))
        raise ShunterError(
            f"{heads} query heads{whose} cannot be spread evenly "
            f"over cp={grid.cp} ranks, as attention ulysses needs",
            where=WHERE,
            mend=f"Use cp={nearest}, or attention: ring, which takes any number of heads.",
        )


def check_rows(grid: Grid, sequence: bool, row_length: int) -> None:
    """Raise ShunterError, with the nearest legal length, for rows that cannot be spread over the ranks."""
    parts = (2 * grid.cp if grid.cp > 1 else 1) * (grid.tp if sequence else 1)
    if row_length % parts:
        fits = max(1, round(row_length / parts)) * parts
        why = f"2 x cp={grid.cp}" if grid.cp > 1 else ""
        why += f"{' x ' if why else ''}tp={grid.tp}" if grid.tp > 1 and sequence else ""
        raise ShunterError(
            f"rows of {row_length} tokens cannot be cut into {why} equal parts",
            where=WHERE,
            mend=f"Make rows of {fits} tokens, or use fewer ranks.",
        )
