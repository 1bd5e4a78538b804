"""`shunter init FOLDER`: a recipe for a person's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the recipe; made if it is not there.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="File or folder with text; may be repeated. Default: FOLDER itself."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="How long pre-training may take on this machine, in minutes.")
    ] = 10.0,
) -> None:
    """Look at your files and write FOLDER/recipe.yaml for them, with a comment on every key."""
    from shunter.config.errors import ShunterError
    from shunter.jobs import starter
    from shunter.jobs.registry import KINDS

    target = folder / "recipe.yaml"
    if target.exists():
        raise ShunterError(
            "is there already", where=str(target), mend="Move it away, or name another folder."
        )
    kinds = {kind: KINDS[kind].Config for kind in KINDS}
    text, lines = starter.draft(folder, data or [folder], kinds, starter.Machine.here(), minutes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # "x": another process may have written one since.
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ShunterError(f"cannot be written ({error.strerror})", where=str(target)) from None
    for line in lines:
        typer.echo(line)
    typer.echo(f"wrote {target}\nnext: shunter run {target} --dry-run")
