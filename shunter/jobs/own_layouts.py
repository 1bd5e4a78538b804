"""The plan of a model without declarations: of a Hugging Face folder, or of a `custom` job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.layout.anymodel import Plan, check_useful, plan
from shunter.layout.folder import weights_of
from shunter.recipe import disk
from shunter.recipe.graph import Graph, Node

PER_PARAMETER = 16  # bytes in float32: weight, gradient, AdamW's two


def of_folder(folder: Path, tp: int, rules: Sequence[str], room: int | None = None) -> Plan:
    """By the names and shapes in its safetensors headers; nothing else is read. room: bytes of a rank, which
    weights, gradients and AdamW's state must fit into. Raises ShunterError otherwise."""
    weights, heads = weights_of(folder)
    found = plan(weights, tp, heads, rules)
    if not rules:
        check_useful(found, lambda parts: plan(weights, parts, heads))
    _must_fit(found, room, lambda parts: plan(weights, parts, heads))
    return found


def of_job(graph: Graph, node: Node, room: int | None = None) -> Plan:
    """Of the model that the job's file makes, without its values."""
    import torch

    from shunter.parallel.generic.laid import heads_of
    from shunter.parallel.generic.laid import weights_of as weights_in
    from shunter.train.task.face import load

    config: Any = node.config
    node.job.check(config, graph.base)
    task = load(graph.base / config.file, config.settings)
    with torch.device("meta"):
        module = task.model()
    weights, heads = list(weights_in(module).values()), heads_of(module)
    parallel = config.how.parallel
    if parallel is not None and parallel.fsdp > 1:
        raise ShunterError(
            "under fsdp each weight is cut along its longest dim that divides: there is no rule to show",
            where=node.where,
            mend="Look at the layout with tp.",
        )
    found = plan(weights, 1 if parallel is None else parallel.tp, heads, config.train.rules)
    if not config.train.rules:
        check_useful(found, lambda parts: plan(weights, parts, heads))
    _must_fit(found, room, lambda parts: plan(weights, parts, heads))
    return found


def _must_fit(found: Plan, room: int | None, other: Any) -> None:
    if room is None or PER_PARAMETER * found.held <= room:
        return
    fits = [parts for parts in (2, 4, 8, 16, 32, 64) if PER_PARAMETER * other(parts).held <= room]
    raise ShunterError(
        f"weights, gradients and AdamW take {disk.human(PER_PARAMETER * found.held)} a rank, "
        f"and there is room for {disk.human(room)}",
        mend=f"Use tp={fits[0]}." if fits else "No tp up to 64 fits.",
    )
