"""`shunter inject RECIPE`: does a run survive a kill, a full disk, a torn checkpoint? Try it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def inject(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe to run.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it.")] = None,
    kind: Annotated[str, typer.Option(help="kill, stop, exception, nan, full-disk or truncate.")] = "kill",
    point: Annotated[
        str | None,
        typer.Option(help="Where it strikes (--list shows the points); default: drawn by the seed."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Only at this step of a training.")] = None,
    job: Annotated[str | None, typer.Option(help="Only in this job.")] = None,
    hit: Annotated[int, typer.Option(help="Strike at the how-manieth passage.")] = 1,
    times: Annotated[int, typer.Option(min=1, help="How many faults, each in an attempt of its own.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Without --point: steps among which one is drawn.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    compare: Annotated[
        Path | None, typer.Option(help="A store with an uninterrupted run, to compare every byte with.")
    ] = None,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    list_: Annotated[bool, typer.Option("--list", help="Print the points and kinds of faults.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Run a recipe with a fault, then to its end, and say whether anything was lost."""
    from shunter.config.errors import ShunterError
    from shunter.launch import drill, faults

    if list_:
        typer.echo(json.dumps(faults.catalogue(), indent=1) if json_ else faults.listing())
        return
    if recipe is None:
        raise ShunterError(
            "no recipe is given", mend="`shunter inject --list` shows points, --help the options."
        )
    if kind == "nan" and compare is not None:
        raise ShunterError("a step that is skipped changes the weights", mend="Leave out --compare.")
    chosen = faults.chosen(kind, point, step, job, hit, times, steps, seed)
    outcome = drill.drill(
        recipe,
        overrides or [],
        Path(store),
        chosen,
        seed=seed,
        compare=compare,
        tell=lambda line: typer.echo(line, err=json_),
    )
    typer.echo(
        json.dumps({**vars(outcome), "survived": outcome.survived}, indent=1)
        if json_
        else faults.told(outcome)
    )
    if not outcome.survived:
        raise typer.Exit(1)
