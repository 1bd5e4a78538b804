"""`shunter layout RECIPE`: who holds what and what travels, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def layout(
    recipe: Annotated[Path, typer.Argument(help="The recipe file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, as for shunter run.")] = None,
    job: Annotated[str | None, typer.Option(help="The job; by default the one that has a layout.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="What each rank has, such as 16GiB: refuse what cannot fit.")
    ] = None,
    diff: Annotated[
        list[str] | None,
        typer.Option(help="Show what changes against a saved layout, or with more changes to the recipe."),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the layout as JSON.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show a layout over processes: weights, memory and messages of each rank."""
    from shunter.jobs.layouts import compared, job_to_lay_out, laid_out, parse_bytes
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe

    room = None if memory is None else parse_bytes(memory)
    graph = load_recipe(recipe, overrides or [], KINDS)
    found = laid_out(graph, job_to_lay_out(graph, job), room)
    changes = compared(found, recipe, overrides or [], diff, job) if diff else None
    if save is not None:
        found.save(save)
    if json_:
        data = found.data() if changes is None else {name: list(both) for name, both in changes.items()}
        typer.echo(json.dumps(data, indent=1))
        return
    from shunter.cli import layout_tables

    if changes is None:
        layout_tables.show(found)
    else:
        layout_tables.show_changes(changes)
    if save is not None:
        typer.echo(f"written: {save}")
