"""What `shunter run --dry-run` prints: every job, what would happen to it, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence

from shunter.config.errors import ShunterError
from shunter.recipe import preflight
from shunter.recipe.graph import Graph
from shunter.recipe.identity import SHORT
from shunter.recipe.plan import Planner, Step
from shunter.recipe.store import Store

STATES = {
    "finished": "finished",
    "run": "will run",
    "waits": "depends on upstream",
    "left out": "left out",
    "refused": "refused",
}


def show(
    graph: Graph,
    store: Store,
    first: str | None,
    last: str | None,
    redo: Sequence[str],
    *,
    as_json: bool = False,
) -> str:
    """The plan as text, or as a JSON object with `jobs` and `warnings`. Changes nothing on disk.

    Raises ShunterError for all that `shunter run` would refuse.
    """
    selected = graph.select(first, last)
    again = [name for one in redo for name in graph.named(one)]
    if outside := set(again) - set(selected):
        raise ShunterError(f"{sorted(outside)[0]} is not among the jobs to run", mend="Leave out --redo.")
    steps = Planner(graph, store, again).plan(selected)
    warnings = preflight.check(graph, store, steps)
    if as_json:
        return json.dumps({"jobs": [_data(step) for step in steps], "warnings": warnings}, indent=1)
    width = max(len(step.node.name) for step in steps)
    lines = [f"{step.node.name:<{width}}  {STATES[step.state]:<19}  {_why(step)}".rstrip() for step in steps]
    for stem, early in graph.early.items():
        when = f"after {early.after:.0%} of the samples"
        lines.append(f"{stem}: {early.share:.0%} of the variants are to be stopped {when}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def _why(step: Step) -> str:
    return step.artefact.path.name if step.artefact else step.why


def _data(step: Step) -> dict[str, object]:
    return {
        "name": step.node.name,
        "kind": step.node.kind,
        "state": STATES[step.state],
        "why": step.why,
        "id": step.id[:SHORT] if step.id else None,
        "artefact": step.artefact.path.name if step.artefact else None,
        "inputs": list(step.node.upstream),
    }
