"""`shunter run RECIPE`: run its jobs, or continue where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


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
    """Run the jobs in order, reusing what is finished. Stopped or killed, the same command continues."""
    import sys

    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.store import Store

    graph = load_recipe(recipe, overrides or [], KINDS)
    place = Store(store)
    if dry_run:
        from shunter.recipe import dryrun

        typer.echo(dryrun.show(graph, place, first, last, redo or [], as_json=json_))
        return
    from shunter.recipe.control import RunStopped
    from shunter.recipe.progress import Progress
    from shunter.recipe.runner import run_graph

    progress = Progress(stream=sys.stderr if json_ else None)
    try:
        made = run_graph(graph, place, first=first, last=last, redo=redo or [], progress=progress)
    except RunStopped as stop:
        raise typer.Exit(stop.code) from None
    if json_:
        from shunter.recipe.status import run_data

        typer.echo(json.dumps(run_data(place, place.run(graph.path)), indent=1))
    else:
        progress.end(made)
