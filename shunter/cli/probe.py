"""`shunter probe`: measure this machine and write it as a cluster's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def probe(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the cluster's file here.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a GPU, or two on CPUs.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer timings: about ten seconds.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure even if the cache has it.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure products, attention, memory, links and collectives of this machine."""
    from shunter.cluster import files
    from shunter.plan.probe import probe as measure

    found, path = measure(ranks, quick=quick, again=again, say=lambda line: typer.echo(line, err=True))
    if out is not None:
        files.save(found.description, out)
    if json_:
        typer.echo(
            json.dumps({"path": str(path), **found.description.model_dump(exclude_defaults=True)}, indent=1)
        )
        return
    from shunter.cli.cluster_tables import show

    show(found.description)
    typer.echo(f"\nkept in {path}" + (f" and written to {out}" if out else ""))
