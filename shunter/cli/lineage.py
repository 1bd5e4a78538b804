"""`shunter lineage ARTEFACT`: from a score back to the documents."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def lineage(
    artefact: Annotated[str, typer.Argument(help="A job's name, NAME-ID, or an artefact's folder.")],
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[bool, typer.Option("--json", help="Print the graph as JSON.")] = False,
) -> None:
    """Show what an artefact was made from, down to the files, and what was made from it."""
    from shunter.recipe import lineage as lines
    from shunter.recipe.store import Store

    found = lines.of(Store(store), artefact)
    typer.echo(json.dumps(found.data(), indent=1) if json_ else found.tree())
