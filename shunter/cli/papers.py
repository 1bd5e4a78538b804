"""`shunter papers`: every paper known, with its state."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def papers(
    state: Annotated[str, typer.Option(help="Only papers in this state: works, partial or missing.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which papers work, are partial, or are missing, and what each lacks."""
    from shunter.config.errors import ShunterError
    from shunter.papers import catalogue

    if state not in ("", "works", "partial", "missing"):
        raise ShunterError(f"no state is called {state!r}", mend="Give works, partial or missing.")
    known = catalogue.papers()
    chosen = [paper for paper in known if state in ("", paper.state)]
    if as_json:
        typer.echo(json.dumps([paper.as_json() for paper in chosen], indent=1, ensure_ascii=False))
        return
    import shutil

    room = shutil.get_terminal_size((120, 24)).columns
    width = max((len(paper.slug) for paper in chosen), default=0)
    for paper in chosen:
        holds = "" if paper.holds is None else "holds" if paper.holds else "does not hold"
        typer.echo(f"{paper.slug:<{width}}  {paper.state:<7}  {holds:<13}  {paper.title}"[:room].rstrip())
    for paper in chosen:
        if paper.state == "partial":
            typer.echo(f"{paper.slug} lacks: {'; '.join(paper.lacks)}")
        if paper.untried:
            typer.echo(f"{paper.slug} not tried: {'; '.join(paper.untried)}")
    counts = {s: sum(paper.state == s for paper in known) for s in ("works", "partial", "missing")}
    typer.echo(", ".join(f"{count} {name}" for name, count in counts.items()) + f" of {len(known)} papers")
