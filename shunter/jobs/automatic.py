"""`parallel: auto`: a recipe's jobs are planned for the machine that they run on. Imports without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.jobs.layouts import known
from shunter.recipe.graph import Graph, Node
from shunter.train.config import AUTO, TrainConfig, TrainHow

LONG = ("cut", "layers", "recompute", "offload")  # lists of layers are not for one line


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

    The machine is what `shunter probe` measured, now if it has not been; or cluster_file. Plans are kept in
    `folder` by the job's name. Raises ShunterError where the recipe does not tell the model, and where it
    fits nowhere.
    """
    nodes = to_plan(graph)
    if not nodes:
        return []
    from shunter.cluster import files
    from shunter.plan.calibrate import coefficients_of
    from shunter.plan.choices import Question
    from shunter.plan.fabric import Fabric
    from shunter.plan.plan import Plan
    from shunter.plan.practice import practice
    from shunter.plan.probe import probe
    from shunter.plan.search import search
    from shunter.plan.space import compilable

    if cluster_file is None:
        cluster, _ = probe(quick=True, say=say)
    else:
        cluster = files.read(cluster_file)
    changes: dict[str, None] = {}
    for node in nodes:
        found, train = known(graph, node), getattr(node.config, "train", None)
        if found is None or not isinstance(train, TrainConfig):
            raise ShunterError(
                "the recipe does not tell the model that is to be planned for",
                where=node.where,
                mend="Write a plan with `shunter plan -o`, and name its file.",
            )
        fabric = Fabric.of(cluster)
        name = "shunter-fp32" if fabric.device.type == "cpu" or train.precision == "fp32" else "shunter"
        practised = practice(name)
        if node.config.how.compile:  # type: ignore[attr-defined]
            practised = compilable(practised)  # the rest is refused by `jobs.training.check_compiled`
        question = Question(
            found.spec, fabric, train.batch_rows, found.row_length, practised, coefficients_of(cluster)
        )
        best = search(question, top=1).plans[0].prediction
        plan = Plan.of(question, cluster, best)
        path = (folder / f"{graph.name}-{node.stem}.yaml").absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
        degrees = [f"{key} {value}" for key, value in plan.parallel().items() if key not in LONG]
        say(
            f"{node.name}: planned {', '.join(degrees)}; a step is to take {plan.step_seconds:.3g} s ({path})"
        )
        parallel = node.config.how.parallel  # type: ignore[attr-defined]
        rest = {key: getattr(parallel, key) for key in parallel.model_fields_set - {"plan"}}
        told = json.dumps({"plan": str(path), **rest})
        changes[f"jobs.{node.stem}.how.parallel={told}"] = None
    return list(changes)
