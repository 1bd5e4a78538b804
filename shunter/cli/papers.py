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
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("paper", "state", "holds"):
        longest = max((len(p.slug if name == "paper" else p.state) for p in chosen), default=0)
        table.add_column(name, no_wrap=True, min_width=longest if name != "holds" else None)
    table.add_column("title", no_wrap=True, overflow="ellipsis")
    for paper in chosen:
        holds = "-" if paper.holds is None else ("yes" if paper.holds else "no")
        table.add_row(paper.slug, paper.state, holds, paper.title)
    console = Console()
    if chosen:
        console.print(table)
    for paper in chosen:
        if paper.state == "partial":
            console.print(f"{paper.slug} lacks: {'; '.join(paper.lacks)}", markup=False)
    counts = {s: sum(paper.state == s for paper in known) for s in ("works", "partial", "missing")}
    typer.echo(", ".join(f"{count} {name}" for name, count in counts.items()) + f" of {len(known)} papers")
