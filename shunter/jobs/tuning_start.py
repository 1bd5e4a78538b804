"""Where trials begin: at the point of the space that the planner predicts to be fastest. Imports without
torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.jobs.foretold import foretell
from shunter.jobs.questions import trained
from shunter.plan.plan import Plan
from shunter.plan.trials import Point, Space

SPEEDS = ("tokens_per_second",)  # metrics that a shorter step makes larger
MOST = 2_000  # points that are predicted: of more, as many in even steps


def planned_first(
    recipe: Path,
    changes: Callable[[Point], list[str]],
    names: Sequence[str],
    space: Space,
    metric: str,
    cluster: str | None,
    say: Callable[[str], None],
) -> list[Point]:
    """The planner's best point, or none where it knows nothing of the job, the metric or the points; says
    which and why.

    What is predicted is the step of each point's own layout, of those whose memory is there. Of points that
    are predicted alike the one with fewest micro-batches is taken, as each has calls that are not counted,
    and of these, since the planner does not know what they differ in, the first.
    """
    if metric not in SPEEDS:
        say(f"the planner does not predict {metric}: trials begin by chance")
        return []
    best: tuple[float, int, Point] | None = None  # tokens a second, micro-batches
    seen, fits, why = 0, 0, "the space is empty"
    points = list(space.points())
    every = max(1, -(-len(points) // MOST))
    machines: dict[int, Cluster] = {}

    @cache
    def whole() -> Cluster:  # asked for once a point is known, as it may have to be measured
        return _machine(cluster, say)

    for point in points[::every]:
        try:
            plan = _predicted(recipe, changes(point), names, whole, machines)
        except ShunterError as error:
            why = error.what
            continue
        seen += 1
        room = min(device.spec.memory for device in machines[plan.devices].devices)
        if max(plan.memory_bytes_by_stage) > room:
            why = "no point is predicted to fit"
            continue
        fits += 1
        rate = plan.batch * plan.sequence / plan.step_seconds
        alike = best is not None and math.isclose(rate, best[0], rel_tol=1e-6)
        if best is None or (plan.microbatches < best[1] if alike else rate > best[0]):
            best = rate, plan.microbatches, point
    if best is None:
        say(f"the planner predicts none of the points ({why}): trials begin by chance")
        return []
    told = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in best[2].items())
    say(f"trials begin with the planner's best of {fits} points: {told}, {best[0]:,.0f} tokens/s predicted")
    return [best[2]]


def _machine(cluster: str | None, say: Callable[[str], None]) -> Cluster:
    from shunter.cluster import files
    from shunter.plan.probe import probe

    return files.find(cluster) if cluster is not None else probe(quick=True, say=say)[0]


def _predicted(
    recipe: Path,
    changes: Sequence[str],
    names: Sequence[str],
    whole: Callable[[], Cluster],
    machines: dict[int, Cluster],
) -> Plan:
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe

    graph = load_recipe(recipe, changes, KINDS)
    asked = trained(graph, graph.nodes[names[0]])
    parallel = asked.how.parallel
    if parallel is not None and parallel.plan is not None:
        raise ShunterError("the points are laid out by a plan's file")
    ranks, here = (1 if parallel is None else parallel.grid.size), whole()
    if ranks > here.world:
        raise ShunterError(f"{ranks} ranks are more than the {here.world} devices of {here.name}")
    if ranks not in machines:
        machines[ranks] = here if ranks == here.world else here.subcluster(range(ranks))
    return foretell(asked, machines[ranks], here=True)
