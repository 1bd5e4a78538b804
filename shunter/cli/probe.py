"""`shunter probe`: measure this machine, or what a model takes on it, and write it as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shunter.config.errors import ShunterError


def probe(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the cluster's file here.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a GPU, or two on CPUs.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer timings: about ten seconds.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure even if the cache has it.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Instead of the machine: what this recipe's or published model takes on it."),
    ] = None,
    seq: Annotated[int | None, typer.Option(help="With --model: tokens of a row.")] = None,
    global_batch: Annotated[int | None, typer.Option(help="With --model: rows of a step.")] = None,
    job: Annotated[str | None, typer.Option(help="With a recipe: the job.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure products, attention, memory, links and collectives of this machine; or a model on it."""
    if model is not None:
        _profile(model, seq, global_batch, job, ranks, quick, again, out, json_)
        return
    for name, value in (("--seq", seq), ("--global-batch", global_batch), ("--job", job)):
        if value is not None:
            raise ShunterError(f"{name} goes with --model", mend="Name a model, or leave it out.")
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


def _profile(
    model: str,
    seq: int | None,
    batch: int | None,
    job: str | None,
    ranks: int | None,
    quick: bool,
    again: bool,
    out: Path | None,
    json_: bool,
) -> None:
    from shunter.jobs import planning
    from shunter.train.profiler import profile

    asked = planning.to_profile(model, batch, seq, job)
    found, path = profile(
        asked.spec, asked.row, asked.rows, precision=asked.precision, optimizer=asked.optimizer, ranks=ranks,
        quick=quick, again=again, say=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    if out is not None:
        found.save(out)
    if json_:
        typer.echo(json.dumps({"path": str(path), **found.data()}, indent=1))
        return
    from shunter.cli.cluster_tables import show_profile

    show_profile(found)
    typer.echo(f"\nkept in {path}" + (f" and written to {out}" if out else ""))
