"""Whether answers fit the contexts of the models that give them, as far as a recipe tells it beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shunter.config.errors import ShunterError
from shunter.jobs import layouts
from shunter.recipe.graph import Graph, Node


def context_of(graph: Graph, node: Node) -> int | None:
    """Tokens that the model of a job can see; None where the recipe does not tell. Tuning changes nothing of
    it."""
    while True:
        made = layouts.made(graph, node)
        if made is not None:
            return made.max_positions
        names = node.inputs.get("model", ())
        if len(names) != 1:
            return None
        node = graph.nodes[names[0]]


def check(graph: Graph, node: Node, field: str, answers: Mapping[str, int]) -> Sequence[str]:
    """Raises ShunterError where new tokens leave no room for a prompt. field: which of the job's inputs are
    models. answers: tokens by the key that asks for them."""
    for name in node.inputs.get(field, ()):
        context = context_of(graph, graph.nodes[name])
        for key, count in answers.items():
            if context is not None and count >= context:
                raise ShunterError(
                    f"{count} new tokens fill the context of {name}, which is {context}",
                    where=f"{node.where}.{key}",
                    mend=f"Lower {key}.",
                )
    return []
