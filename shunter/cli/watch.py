"""`shunter watch`: attach to a run that goes on."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer


def watch(
    run: Annotated[
        str | None, typer.Argument(help="A run's id, a recipe's name or path. Default: the one that runs.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Ask it to save a checkpoint now.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Ask it to save and stop.")] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
    json_: Annotated[bool, typer.Option("--json", help="Print the run's state once as JSON.")] = False,
) -> None:
    """Follow a run: job, step, loss, tokens/s, time left. Ends with it; Ctrl-C leaves the run alone."""
    from shunter.recipe import control
    from shunter.recipe import watch as following
    from shunter.recipe.status import run_data
    from shunter.recipe.store import Store

    place = Store(store)
    found = following.find(place, run)
    for asked, name in ((save, "save"), (stop, "stop")):
        if asked:
            control.request(found.folder / "control", name)
    if json_:
        typer.echo(json.dumps(run_data(place, found), indent=1))
        return
    if save or stop:
        typer.echo(
            f"asked {found.id} to {' and '.join(n for on, n in ((save, 'save'), (stop, 'stop')) if on)}"
        )
    if save and not stop:
        return
    watcher = following.Watcher(place, found)
    while True:
        for line in watcher.poll():
            typer.echo(line)
        if watcher.ended:
            break
        time.sleep(every)
    typer.echo(watcher.last_line())
