"""`shunter doctor`: everything that can be checked before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe to check too.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, as for shunter run.")] = None,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte of every artefact and compare its digest.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check the machine, the store and a recipe. Exit code 2 when a run would be refused."""
    from dataclasses import asdict

    from shunter.jobs.registry import KINDS
    from shunter.recipe.doctor import FAIL, examine

    rows = examine(store, recipe, overrides or [], KINDS, verify=verify)
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        from shunter.cli.tables import show_checks

        show_checks(rows)
    if any(row.state == FAIL for row in rows):
        raise typer.Exit(2)
