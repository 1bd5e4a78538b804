"""Tables of `shunter layout`. Imported when they are printed: rich takes a moment to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from shunter.cli.tables import _print, _table
from shunter.layout.anymodel import Plan
from shunter.layout.described import Layout
from shunter.recipe.disk import human

MOST = 32  # ranks that are printed


def show(layout: Layout) -> None:
    """Who holds what, what is cut by which axis, what travels, and what is guessed."""
    shown = layout.ranks[:MOST]
    table = _table(
        "rank", "place", "stages: layers", "parameters", "weights", "gradients", "optimizer", "gathered",
        "activations", "at once", "in all",
    )  # fmt: skip
    for each in shown:
        layers = ", ".join(
            f"{stage}: {begin}-{end - 1}"
            for stage, (begin, end) in zip(each.stages, each.layers, strict=True)
        )
        sizes = (
            each.weights, each.gradients, each.optimizer, each.gathered, each.activations, each.at_once,
            each.total,
        )  # fmt: skip
        place = " ".join(f"{axis}{index}" for axis, index in each.place.items())
        table.add_row(*map(Text, (str(each.rank), place, layers, f"{each.parameters:,}", *map(human, sizes))))
    _print(table)
    if len(layout.ranks) > MOST:
        print(f"... {len(layout.ranks) - MOST} more ranks; --json has all")
    print(
        "\nactivations: of one micro-batch, an estimate; at once: of all that are in flight; in all: with "
        "what is there for a moment\n"
    )
    table = _table("weight", "whole", "on a rank", "cut by")
    for kind in layout.kinds:
        table.add_row(
            *map(Text, (kind.kind, _shape(kind.whole), _shape(kind.local), ", ".join(kind.axes) or "nothing"))
        )
    _print(table)
    names = list(dict.fromkeys(kind for sent in layout.traffic for kind in sent))
    print("\nsent in a step:" if names else "\nnothing is sent in a step")
    if names:
        table = _table("rank", *names, "in all")
        for each, sent in zip(shown, layout.traffic, strict=False):
            bytes_ = [*(sent.get(name, 0) for name in names), sum(sent.values())]
            table.add_row(Text(str(each.rank)), *(Text(human(size) if size else "") for size in bytes_))
        _print(table)
    for note in layout.notes:
        print(f"note: {note}")


def show_changes(changes: Mapping[str, Sequence[Any]]) -> None:
    """One line a figure that is not the same; bytes as they are."""
    if not changes:
        print("nothing changes")
        return
    table = _table("", "here", "there")
    for name, (here, there) in changes.items():
        table.add_row(Text(name), Text(_value(name, here)), Text(_value(name, there)))
    _print(table)


def _value(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return (
            " x ".join(map(str, value))
            if name.endswith(".local")
            else ", ".join(map(str, value)) or "nothing"
        )
    if isinstance(value, int) and name.startswith(("fullest rank.", "most sent")):
        return f"{value:,}" if name.endswith("parameters") else human(value)
    return str(value)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def show_plan(plan: Plan) -> None:
    """A line for each kind of weight: how many, the shape, the part on a rank, along what it is cut, why."""
    table = _table("layer", "weights", "shape", "on a rank", "cut along", "rule")
    rows: dict[tuple[str, ...], int] = {}
    rules = {name: rule.why for name, rule in plan.chosen.items()}
    for name, weight in plan.weights.items():
        cut = plan.cuts[name]
        leaf = name.rpartition(".")[2]
        layer = weight.module.rpartition(".")[2]
        where = "nothing" if cut.dim is None else f"dim {cut.dim}" + (", outputs" if cut.output else "")
        if cut.blocks:
            where += f", each of {len(cut.blocks)} projections"
        why = "with its outputs" if leaf == "bias" and cut.dim is not None else rules[name]
        row = (
            layer if leaf == "weight" and layer else f"{layer}.{leaf}".strip("."),
            _shape(list(weight.shape)),
            _shape(list(plan.piece(name, 0).local_shape)),
            where,
            why,
        )
        rows[row] = rows.get(row, 0) + 1
    for (layer, whole, part, where, why), count in sorted(rows.items()):
        table.add_row(*map(Text, (layer, str(count), whole, part, where, why)))
    _print(table)
    share = plan.held / plan.elements if plan.elements else 1.0
    print(f"\n{plan.elements:,} parameters; each rank of {plan.parts} holds {plan.held:,} ({share:.1%})")
    print(f"with gradients and AdamW in float32: {human(16 * plan.held)} a rank, without activations")
    for note in plan.notes:
        print(f"note: {note}")
