"""`shunter calibrate`: coefficients of the cost model from runs that had a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    artefacts: Annotated[list[Path], typer.Argument(help="Folders of models trained with a plan.")],
    cluster: Annotated[
        str | None,
        typer.Option(help="The cluster that the plans were made for; default: the one that they hold."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the coefficients.")] = Path(
        "calibration.yaml"
    ),
) -> None:
    """Fit the cost model to runs; `shunter plan --calibration` then plans with what they took."""
    from shunter.jobs.account import calibrate as fitted

    found = fitted(artefacts, cluster, out)
    for name, value in found.coefficients.items():
        typer.echo(f"{name}: {value:.4g}")
    typer.echo(f"of {', '.join(found.kinds)}, by runs of {found.practice}")
    typer.echo(f"written: {out}")
    if found.kept is not None:
        typer.echo(f"kept for parallel: auto and shunter plan on this machine: {found.kept}")
