"""`shunter gc`: remove what is no longer needed."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def gc(
    budget: Annotated[
        str | None,
        typer.Option(help="Size to keep the store within, such as 2GB. Without it only leftovers go."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove. Without it, only show what would go.")] = False,
    break_lineage: Annotated[
        bool, typer.Option("--break-lineage", help="Remove also what kept artefacts were made from.")
    ] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Remove leftovers of work and, oldest first, artefacts over the budget; never the newest of a job."""
    from shunter.recipe import gc as collector
    from shunter.recipe.disk import human
    from shunter.recipe.store import Store

    place = Store(store)
    limit = collector.parse_size(budget) if budget is not None else None
    found = collector.sweep(place, limit, break_lineage=break_lineage)
    freed = collector.remove(place, found) if yes else 0
    if json_:
        removals = [{"path": str(r.path), "bytes": r.bytes, "why": r.why} for r in found.removals]
        facts = {"bytes": found.bytes, "budget": limit, "after": found.after, "removed": yes, "freed": freed}
        typer.echo(json.dumps({**facts, "removals": removals}, indent=1))
        return
    for removal in found.removals:
        typer.echo(f"{removal.path.name}  {human(removal.bytes)}  {removal.why}")
    typer.echo(
        f"the store holds {human(found.bytes)}"
        + (f", its budget is {human(limit)}" if limit is not None else "")
    )
    if not found.removals:
        typer.echo("nothing to remove")
    elif yes:
        typer.echo(f"removed {human(freed)}")
    else:
        typer.echo(f"would remove {human(found.bytes - found.after)}; --yes does it")
    if found.is_over:
        typer.echo(f"the rest ({human(found.after)}) is the newest of each job and what it was made from")
