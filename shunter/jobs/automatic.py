"""`parallel: auto`: a recipe's jobs are planned for the machine that they run on. Imports without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from shunter.recipe.graph import Graph, Node
from shunter.train.config import AUTO, TrainHow

LONG = ("cut", "layers", "ends", "recompute", "offload")  # lists of layers are not for one line


def to_plan(graph: Graph) -> list[Node]:
    """Jobs that ask for it."""
    return [
        node
        for node in graph.nodes.values()
        if isinstance(how := getattr(node.config, "how", None), TrainHow)
        and how.parallel is not None
        and how.parallel.plan == AUTO
    ]


def planned(
    graph: Graph, folder: Path, say: Callable[[str], None], cluster_file: Path | None = None
) -> list[str]:
    """Changes of the recipe that put a plan's file in place of `auto`, for each job that asks for it.

    The machine is what `shunter probe` measured, now if it has not been, and so is what the model takes on
    it; or cluster_file. Plans are kept in `folder` by the job's name. Raises ShunterError where the recipe
    does not tell the model, and where it fits nowhere.
    """
    nodes = to_plan(graph)
    if not nodes:
        return []
    from shunter.cluster import files
    from shunter.jobs.questions import cited, question, trained
    from shunter.plan.plan import Plan
    from shunter.plan.probe import probe
    from shunter.plan.reach import must_reach
    from shunter.plan.search import search

    if cluster_file is None:
        cluster, _ = probe(quick=True, say=say)
    else:
        cluster = files.read(cluster_file)
    changes: dict[str, None] = {}
    for node in nodes:
        found = trained(graph, node)
        asked = question(
            found.spec, cluster, found.batch, found.row, found.practice(cluster), extrapolate=True
        )
        if cluster_file is None and cluster.world > 1 and found.spec.experts is None:
            from shunter.train.profiler import profile

            measured, _ = profile(
                found.spec, found.row, found.batch, precision=asked.practice.products,
                optimizer=found.train.optimizer, ranks=cluster.world, threads=found.how.threads,
                quick=True, say=say,
            )  # fmt: skip
            asked = asked.measured(measured)
        must_reach(asked)
        best = search(asked, top=1)
        plan = Plan.of(best.question, cluster, best.plans[0].prediction)
        path = (folder / f"{graph.name}-{node.stem}.yaml").absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
        degrees = [f"{key} {value}" for key, value in plan.parallel().items() if key not in LONG]
        say(
            f"{node.name}: planned {', '.join(degrees)}; a step is to take {plan.step_seconds:.3g} s ({path})"
        )
        for line in cited(asked):
            say(f"calibrated: {line}")
        parallel = node.config.how.parallel  # type: ignore[attr-defined]
        rest = {key: getattr(parallel, key) for key in parallel.model_fields_set - {"plan"}}
        told = json.dumps({"plan": str(path), **rest})
        changes[f"jobs.{node.stem}.how.parallel={told}"] = None
    return list(changes)
