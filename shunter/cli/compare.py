"""`shunter compare A B`: what differs between two runs or artefacts."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def compare(
    a: Annotated[str, typer.Argument(help="A run (id, recipe's name or path) or an artefact.")],
    b: Annotated[str, typer.Argument(help="Another of the same sort.")],
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare two runs or artefacts: configuration, inputs, metrics, and scores paired by item."""
    from shunter.evaluate.paired import compare_items
    from shunter.recipe import diff
    from shunter.recipe.store import Store

    found = diff.compare(Store(store), a, b, compare_items)
    if json_:
        typer.echo(json.dumps(found, indent=1))
        return
    from shunter.cli.tables import show_comparison

    show_comparison(found)
