"""Can processes that were started together do what a recipe asks? Asked before the first job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shunter.config.errors import ShunterError
from shunter.jobs import ranks
from shunter.recipe.graph import Graph
from shunter.recipe.store import Store

if TYPE_CHECKING:
    from shunter.launch.crew import Crew
    from shunter.launch.machines import Machines


def enough(size: int, graph: Graph, selected: Sequence[str]) -> None:
    """Raise ShunterError for a job that takes more processes than were started."""
    for name, count in ranks.needed(graph, selected).items():
        if count > size:
            raise ShunterError(
                f"{name} takes {count} processes, and {size} were started",
                where=graph.nodes[name].where,
                mend="Start as many, or lower how.parallel.",
            )


def examine(crew: Crew, graph: Graph, store: Store, selected: Sequence[str]) -> Machines:
    """What the machines tell of themselves, with what does not fit together.

    Raises ShunterError where a job takes more processes than there are, or one does not see the store.
    """
    from shunter.launch import machines

    enough(crew.size, graph, selected)
    store.create()
    machines.share(crew, store.path)
    devices = {
        getattr(getattr(graph.nodes[name].config, "how", None), "device", "auto")
        for name in ranks.needed(graph, selected)
    }
    device = "cpu" if devices <= {"cpu"} else "auto"
    return machines.gather(crew, store.path, graph.base.absolute(), device)
