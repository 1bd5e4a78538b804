"""`shunter schedules`: every schedule, with what it costs and holds."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def schedules(
    ranks: Annotated[int, typer.Option(help="Pipeline ranks.")] = 4,
    microbatches: Annotated[int, typer.Option(help="Micro-batches in a step.")] = 8,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every schedule: idle time, span and memory for so many ranks and micro-batches.

    A rank's forward, gradient of the input and gradient of the weights take 1 each; messages take nothing.
    """
    from shunter.config.errors import ShunterError
    from shunter.schedule.assemble import assemble
    from shunter.schedule.catalogue import SCHEDULES
    from shunter.schedule.costs import Costs
    from shunter.schedule.simulate import simulate

    rows: list[dict[str, Any]] = []
    for schedule in SCHEDULES.values():
        row: dict[str, Any] = {"schedule": schedule.name, "about": schedule.about, "source": schedule.source}
        try:
            order = schedule.build(ranks, microbatches)
        except ShunterError as error:
            if ranks < 1 or microbatches < 1:
                raise
            rows.append({**row, "refused": error.what})
            continue
        found = simulate(assemble(order), Costs.even(order.placement))
        rows.append(
            {
                **row,
                "chunks": order.stages // order.ranks,
                "elapsed": found.elapsed,
                "idle_over_ideal": found.idle_over_ideal,
                "longest_span": found.longest_span,
                "peak_activations": max(found.peak_activations),
            }
        )
    if json_:
        typer.echo(json.dumps({"ranks": ranks, "microbatches": microbatches, "schedules": rows}, indent=1))
        return
    from shunter.cli.tables import show_schedules

    show_schedules(ranks, microbatches, rows)
