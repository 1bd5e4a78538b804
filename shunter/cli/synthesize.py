"""`shunter synthesize`: a good schedule for given costs and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def synthesize(
    ranks: Annotated[int, typer.Option(help="Pipeline ranks.")],
    microbatches: Annotated[int, typer.Option(help="Micro-batches in a step.")],
    cap: Annotated[
        str, typer.Option(help="Most activations a rank may hold, in micro-batches: N, or N,N,... by rank.")
    ],
    placement: Annotated[
        Literal["looped", "vee"],
        typer.Option(help="How stages lie on ranks: in rounds, or down and up again."),
    ] = "looped",
    chunks: Annotated[int | None, typer.Option(help="Stages on each rank; 1 looped, 2 vee.")] = None,
    forward: Annotated[float | None, typer.Option(help="Time of a rank's forward; 1 by default.")] = None,
    input_grad: Annotated[
        float | None, typer.Option(help="Time of a rank's gradient of the input; 1 by default.")
    ] = None,
    weight_grad: Annotated[
        float | None, typer.Option(help="Time of a rank's gradient of the weights; 1 by default.")
    ] = None,
    transfer: Annotated[float, typer.Option(help="Time that a message between two ranks takes.")] = 0.0,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="JSON with forward, input_grad, weight_grad: a time, or one for each rank or stage."
        ),
    ] = None,
    released_at_input: Annotated[
        float, typer.Option(help="Share of activations that the gradient of the input releases.")
    ] = 0.0,
    prove: Annotated[bool, typer.Option("--prove", help="Look for a proof too (extra `solve`).")] = False,
    seconds: Annotated[float, typer.Option(help="About how long to search, and again to prove.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Another seed, another search.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the order here, in torch's form.")] = None,
) -> None:
    """Find the shortest order of a pipeline's work in which no rank holds more than its cap."""
    from shunter.config.errors import ShunterError
    from shunter.schedule.assemble import assemble
    from shunter.schedule.cost_file import finite, read_caps, read_costs
    from shunter.schedule.costs import Costs, Links
    from shunter.schedule.order import place
    from shunter.schedule.simulate import simulate
    from shunter.schedule.synthesize import synthesize
    from shunter.schedule.text import write_order

    stages = place(placement, ranks, chunks)
    times = {"--forward": forward, "--input-grad": input_grad, "--weight-grad": weight_grad}
    finite({**times, "--transfer": transfer, "--seconds": seconds})
    if costs is not None and (given := [name for name, time in times.items() if time is not None]):
        raise ShunterError(
            f"both {costs} and {given[0]} say what an operation costs", mend="Leave one of the two out."
        )
    if costs is not None:
        known = read_costs(costs, stages)
    else:
        known = Costs.even(stages, *(1.0 if time is None else time for time in times.values()))
    links = Links(latency=transfer)
    found = synthesize(
        stages, microbatches, known, read_caps(cap), links=links, released_at_input=released_at_input,
        seconds=seconds, prove=prove, seed=seed,
    )  # fmt: skip
    run = simulate(assemble(found.order, released_at_input=released_at_input), known, links)
    text = write_order(found.order)
    if csv is not None:
        try:
            csv.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ShunterError(
                f"the order cannot be written: {error.strerror}", where=str(csv), mend="Name another file."
            ) from None
    if json_:
        answer = {
            "ranks": ranks, "microbatches": microbatches, "placement": list(stages),
            "elapsed": found.elapsed, "bound": found.bound, "proven": found.proven, "how": found.how,
            "ideal": run.ideal, "idle_over_ideal": run.idle_over_ideal, "longest_span": run.longest_span,
            "peak_activations": run.peak_activations, "order": text.splitlines(),
        }  # fmt: skip
        typer.echo(json.dumps(answer, indent=1))
        return
    verdict = (
        "proven: nothing is shorter" if found.proven
        else f"nothing is below {found.bound:g}, so at most {found.gap:.1%} could be gained"
    )  # fmt: skip
    typer.echo(f"elapsed {found.elapsed:g} in the unit of the costs ({verdict}), found by {found.how}")
    typer.echo(f"idle/ideal {run.idle_over_ideal:.1%}, longest span of a rank {run.longest_span:g}")
    peaks = ", ".join(f"{peak:g}" for peak in run.peak_activations)
    typer.echo(f"peak activations by rank, in micro-batches: {peaks}")
    if csv is not None:
        typer.echo(f"order written to {csv}")
    else:
        for rank, line in enumerate(text.splitlines()):
            typer.echo(f"rank {rank}: {line.replace(',', ' ')}")
