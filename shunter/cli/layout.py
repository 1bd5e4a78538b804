"""`shunter layout RECIPE`: who holds what and what travels, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shunter.config.errors import ShunterError
from shunter.layout.anymodel import Plan


def layout(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe file.")] = None,
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
    model: Annotated[
        Path | None, typer.Option(help="Instead of a recipe: a Hugging Face folder, laid out by its names.")
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="With --model: parts of each matrix.")] = 2,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="With --model: NAME=out, =in, =whole or =DIM, for a rule."),
    ] = None,
) -> None:
    """Show a layout over processes: weights, memory and messages of each rank."""
    from shunter.jobs.layouts import compared, job_to_lay_out, laid_out, parse_bytes
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe

    room = None if memory is None else parse_bytes(memory)
    if (recipe is None) == (model is None):
        raise ShunterError("give either a recipe, or --model with a folder")
    if recipe is None or model is not None:
        from shunter.jobs.own_layouts import of_folder

        assert model is not None
        _show_plan(of_folder(model, tp, rule or [], room), save, json_)
        return
    graph = load_recipe(recipe, overrides or [], KINDS)
    node = job_to_lay_out(graph, job)
    if node.kind == "custom":
        from shunter.jobs.own_layouts import of_job

        _show_plan(of_job(graph, node, room), save, json_)
        return
    found = laid_out(graph, node, room)
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


def _show_plan(plan: Plan, save: Path | None, json_: bool) -> None:
    """Of a model without declarations."""
    text = json.dumps(plan.data(), indent=1)
    if save is not None:
        try:
            save.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ShunterError(f"cannot be written ({error.strerror})", where=str(save)) from None
    if json_:
        typer.echo(text)
        return
    from shunter.cli import layout_tables

    layout_tables.show_plan(plan)
    if save is not None:
        typer.echo(f"written: {save}")
