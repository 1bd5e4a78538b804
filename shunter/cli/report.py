"""`shunter report RUN`: one offline HTML file on a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        str | None, typer.Argument(help="A run's id, a recipe's name or path. Default: the newest run.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write. Default: report.html in the run's folder."),
    ] = None,
    store: Annotated[Path, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = Path(
        "shunter-store"
    ),
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the facts as JSON instead; --out still writes.")
    ] = False,
) -> None:
    """Write one offline HTML file on a run: scores, curves, samples, time, memory, lineage."""
    from shunter.report.command import write_report

    for line in write_report(store, run, out, json_only=json_, open_browser=open_):
        typer.echo(line)
