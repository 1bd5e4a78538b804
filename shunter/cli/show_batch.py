"""`shunter show-batch RECIPE JOB`: the rows that a job trains on, before it trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def show_batch(
    recipe: Annotated[Path, typer.Argument(help="The recipe file.")],
    job: Annotated[str, typer.Argument(help="A job that makes rows or trains on them.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 3,
    skip: Annotated[int, typer.Option(min=0, help="Rows of the training order to pass over.")] = 0,
    heldout: Annotated[bool, typer.Option("--heldout", help="Held-out rows, in their own order.")] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Show rows in training order, with what is learnt, where documents end and what is cut off."""
    from shunter.jobs import batches
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.store import Store

    graph = load_recipe(recipe, overrides or [], KINDS)
    shown = batches.first_rows(graph, Store(store), job, skip, rows, "heldout" if heldout else "train")
    if json_:
        typer.echo(json.dumps([row.data() for row in shown], indent=1, ensure_ascii=False))
        return
    from shunter.cli.rows import print_rows

    print_rows(shown)
