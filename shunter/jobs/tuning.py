"""`shunter tune`: a job of a recipe run again and again with other choices, each run a trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.config import canonical, scalar
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.jobs.tuning_start import planned_first
from shunter.plan.importance import importance
from shunter.plan.trials import Failed, Method, Point, Space, Trial, Trials, Value, search
from shunter.recipe.attempt import code_digest, environment_record
from shunter.recipe.graph import Graph

MOST = 20_000  # combinations that are looked through


def read_knobs(texts: Sequence[str]) -> dict[str, list[Value]]:
    """`jobs.base.how.parallel.pp=1,2,4` as a key and its values. Raises ShunterError for anything else."""
    found: dict[str, list[Value]] = {}
    combinations = 1
    for text in texts:
        key, equals, values = text.partition("=")
        read = [scalar.parse(value.strip()) for value in values.split(",")]
        if not equals or not key.strip() or any(value is None for value in read):
            raise ShunterError(f"{text!r} is no knob", mend="Write --knob jobs.base.how.parallel.pp=1,2,4.")
        if key in found or len(set(map(str, read))) < len(read):
            raise ShunterError(f"{text!r}: a knob or a value stands twice", mend="Leave one out.")
        found[key] = [value for value in read if value is not None]
        combinations *= len(read)
    if not found or combinations > MOST:
        raise ShunterError(
            f"{len(found)} knobs make {combinations:,} combinations (from 2 to {MOST:,} are searched)",
            mend="Give --knob KEY=VALUE,VALUE, fewer of them or with fewer values.",
        )
    return found


def read_point(text: str, knobs: Mapping[str, Sequence[Value]]) -> Point:
    """`pp=2,tp=1` as a point; a knob may be named by the end of its key. Raises ShunterError."""
    found: Point = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        keys = [key for key in knobs if key == name.strip() or key.endswith("." + name.strip())]
        read = scalar.parse(value.strip())
        if len(keys) != 1 or read is None:
            guess = nearest(name, [key.rpartition(".")[2] for key in knobs])
            mend = f"Did you mean {guess!r}?" if guess else f"The knobs are {', '.join(knobs)}."
            raise ShunterError(f"{part!r} names no knob", where="--start", mend=mend)
        found[keys[0]] = read
    if missing := [key for key in knobs if key not in found]:
        raise ShunterError(f"{missing[0]} has no value", where="--start", mend="Give every knob one.")
    return {key: found[key] for key in knobs}


def tune(
    recipe: Path,
    overrides: Sequence[str],
    job: str,
    knobs: Mapping[str, Sequence[Value]],
    *,
    metric: str,
    trials: int,
    store: Path,
    log: Path,
    seed: int = 0,
    method: Method = "bayes",
    start: Sequence[Point] | None = None,
    cluster: str | None = None,
    told: Callable[[Trial], None] = lambda trial: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Space, Trials]:
    """Run `job` with each trial's choices and read `metric` of what it publishes; larger is better.

    start: points to begin with; None: the planner's best (`tuning_start`), on this machine or on `cluster`.
    What is upstream is made once. A combination that the recipe refuses is never tried; a run that is
    refused or dies later is a trial that failed. Raises ShunterError for an unknown job, and for what
    `search` refuses."""
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store

    graph = load_recipe(recipe, overrides, KINDS)
    names = graph.named(job)
    place = Store(store)
    reasons: dict[str, str] = {}

    def changes(point: Point) -> list[str]:
        return [*overrides, *(f"{key}={json.dumps(value)}" for key, value in point.items())]

    def refused(point: Point) -> str:
        key = json.dumps(point)
        if key not in reasons:
            try:
                it = load_recipe(recipe, changes(point), KINDS)
                for name in it.named(job):
                    node = it.nodes[name]
                    KINDS[node.config.kind].check(node.config, it.base)
                reasons[key] = ""
            except ShunterError as error:
                reasons[key] = str(error)
        return reasons[key]

    def run(point: Point) -> float:
        try:
            made = run_graph(
                load_recipe(recipe, changes(point), KINDS), place, last=job, redo=[job], quiet=True
            )
        except (ShunterError, RuntimeError, MemoryError) as error:
            raise Failed(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        metrics: dict[str, Any] = made[job].manifest.metrics
        value = metrics.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = ", ".join(key for key, each in metrics.items() if isinstance(each, int | float))
            raise ShunterError(f"{job} has no number {metric!r}", where="--metric", mend=f"It has {known}.")
        return float(value)

    space = Space(dict(knobs), refused)
    begin: Sequence[Point] | Callable[[], Sequence[Point]] = start or ()
    if start is None:

        def begin() -> Sequence[Point]:
            return planned_first(recipe, changes, names, space, metric, cluster, say)

    found = search(
        space, run, trials, seed=seed, method=method, start=begin, log=log, told=told,
        of=identity(graph, names, job, metric), code=code_digest(),
    )  # fmt: skip
    return space, found


def identity(graph: Graph, names: Sequence[str], job: str, metric: str) -> dict[str, str]:
    """What a log of trials is of: the job with all that it is made from, as the recipe and its changes have
    them, the metric, and the machine. By which code is told with each trial."""
    made = sorted(graph.upstream(names))
    record = environment_record()
    machine = {key: record[key] for key in ("cpu", "cores", "devices")}
    configs = {name: graph.nodes[name].config.model_dump(mode="json") for name in made}
    return {
        "recipe": canonical.digest(configs)[:12],
        "job": job,
        "metric": metric,
        "machine": canonical.digest(machine)[:12],
    }


def report(space: Space, found: Trials) -> dict[str, Any]:
    """What came of a search, as JSON values."""
    best, now = found.best, code_digest()
    return {
        "by_other_code": sum(trial.code not in ("", now) for trial in found.done),
        "trials": len(found.done),
        "failures": found.failures,
        "best": None if best is None else {"number": best.number, "point": best.point, "value": best.value},
        "importance": {
            name: {"share": it.share, "low": it.low, "high": it.high}
            for name, it in importance(space, found.done).items()
        },
    }
