"""`shunter schema`: the JSON Schema of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write. Default: standard output.")
    ] = None,
) -> None:
    """Write the JSON Schema of recipes, with which an editor completes keys and marks mistakes.

    In an editor with a YAML language server, begin the recipe with the line
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    import json

    from shunter.config.errors import ShunterError
    from shunter.config.json_schema import recipe_schema
    from shunter.jobs.registry import KINDS
    from shunter.recipe.schema import Recipe

    text = json.dumps(recipe_schema(Recipe, {kind: KINDS[kind].Config for kind in KINDS}), indent=1) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ShunterError(f"cannot be written ({error.strerror})", where=str(out)) from None
    typer.echo(f"wrote {out}")
