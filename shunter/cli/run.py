"""`shunter run RECIPE`: run its jobs, or continue where they were stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shunter.launch.crew import Crew
    from shunter.recipe.graph import Graph
    from shunter.recipe.progress import Progress
    from shunter.recipe.store import Store


def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, such as jobs.base.train.lr=3e-4.")
    ] = None,
    first: Annotated[
        str | None,
        typer.Option("--from", help="Run this job and what is made from it; the rest is finished."),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Run this job and what it is made from, no more.")
    ] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option("--redo", help="Make this job again, though it is finished. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and why; run nothing.")
    ] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[
        bool, typer.Option("--json", help="Print the outcome as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Run the jobs in order, reusing what is finished. Stopped or killed, the same command continues.

    Under torchrun the first process does this, and the others join the jobs that take several.
    """
    from shunter.launch.place import Place

    def work(crew: Crew | None) -> None:
        _run(recipe, overrides or [], first, last, redo or [], dry_run, store, json_, crew)

    place = Place.of(os.environ)
    if place is None:
        work(None)
        return
    # A lost connection is told in one line, without the store's stack in C++. Read when torch is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from shunter.launch import crew

    if place.rank:
        raise typer.Exit(crew.attend(place))
    with crew.leading(place) as others:
        work(others)


def _run(
    recipe: Path,
    overrides: Sequence[str],
    first: str | None,
    last: str | None,
    redo: Sequence[str],
    dry_run: bool,
    store: str,
    as_json: bool,
    crew: Crew | None,
) -> None:
    import sys

    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.store import Store

    graph = load_recipe(recipe, overrides, KINDS)
    place = Store(store if crew is None else str(Path(store).absolute()))
    if not dry_run:
        graph = _planned(graph, recipe, overrides)
    if dry_run:
        from shunter.recipe import dryrun

        typer.echo(dryrun.show(graph, place, first, last, redo, as_json=as_json))
        return
    from shunter.recipe.control import RunStopped
    from shunter.recipe.progress import Progress
    from shunter.recipe.runner import run_graph

    progress = Progress(stream=sys.stderr if as_json else None)
    try:
        if crew is not None:
            _examine(crew, graph, place, graph.select(first, last), progress)
        made = run_graph(graph, place, first=first, last=last, redo=redo, progress=progress, crew=crew)
    except RunStopped as stop:
        raise typer.Exit(stop.code) from None
    if as_json:
        from shunter.recipe.status import run_data

        typer.echo(json.dumps(run_data(place, place.run(graph.path)), indent=1))
    else:
        progress.end(made)


def _planned(graph: Graph, recipe: Path, overrides: Sequence[str]) -> Graph:
    """The graph with a plan for this machine where it asks for one."""
    from shunter.jobs.automatic import planned, to_plan
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe

    if not to_plan(graph):
        return graph
    from shunter.plan.probe import cache

    changes = planned(graph, cache() / "plans", lambda line: typer.echo(line, err=True))
    return load_recipe(recipe, [*overrides, *changes], KINDS)


def _examine(crew: Crew, graph: Graph, store: Store, selected: Sequence[str], progress: Progress) -> None:
    """One report on all machines, where there are several. Raises ShunterError for what breaks."""
    from shunter.jobs import together

    found = together.examine(crew, graph, store, selected)
    if len(found.nodes) > 1:
        from shunter.cli.machines import show

        show(found, progress.stream)
    else:
        for problem in found.problems:
            progress.warn(problem.text)
    found.refuse()
