"""`shunter status`: runs and their jobs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def status(
    run: Annotated[
        str | None, typer.Argument(help="A run's id, a recipe's name or path. Default: the newest run.")
    ] = None,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    count: Annotated[int, typer.Option("--runs", min=1, help="How many runs to list.")] = 8,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show the newest runs and the jobs of one: state, time, memory, size, and whose code made them."""
    from shunter.recipe.status import run_data
    from shunter.recipe.store import Store

    place = Store(store)
    chosen = place.run(run)
    newest = place.runs()[-count:]
    if json_:
        others = [run_data(place, each) for each in newest if each.id != chosen.id]
        typer.echo(json.dumps({"run": run_data(place, chosen), "others": others}, indent=1))
        return
    from shunter.cli.tables import show_jobs, show_runs

    show_runs(newest)
    show_jobs(run_data(place, chosen))
