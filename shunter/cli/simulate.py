"""`shunter simulate`: a schedule on paper, with its time, memory and picture."""

from __future__ import annotations

import gc
import json
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shunter.schedule.simulate import Simulation


def simulate(
    schedule: Annotated[str | None, typer.Option(help="A name; `shunter schedules` lists them.")] = None,
    program: Annotated[
        Path | None, typer.Option(help="Instead, a program's file: shunter's text or torch's CSV.")
    ] = None,
    ranks: Annotated[int, typer.Option(help="Pipeline ranks.")] = 4,
    microbatches: Annotated[int, typer.Option(help="Micro-batches in a step.")] = 8,
    chunks: Annotated[int | None, typer.Option(help="Stages on each rank, where that can be chosen.")] = None,
    group: Annotated[int | None, typer.Option(help="Micro-batches that pass together, likewise.")] = None,
    forward: Annotated[float | None, typer.Option(help="Time of a rank's forward; 1 by default.")] = None,
    input_grad: Annotated[
        float | None, typer.Option(help="Time of a rank's gradient of the input; 1 by default.")
    ] = None,
    weight_grad: Annotated[
        float | None, typer.Option(help="Time of a rank's gradient of the weights; 1 by default.")
    ] = None,
    head: Annotated[
        float | None,
        typer.Option(help="Time of each of the head's three products; 0 by default, 1 with --vocabulary."),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="Split embedding and head over all ranks, by algorithm 1 or 2.")
    ] = None,
    transfer: Annotated[float, typer.Option(help="Time that a message between two ranks takes.")] = 0.0,
    blocking: Annotated[bool, typer.Option("--blocking", help="Ranks wait while messages pass.")] = False,
    costs: Annotated[Path | None, typer.Option(help="JSON with the times, as for `synthesize`.")] = None,
    links_: Annotated[
        Path | None, typer.Option("--links", help="YAML with latency and bandwidth of each pair of ranks.")
    ] = None,
    released_at_input: Annotated[
        float, typer.Option(help="Share of activations that the gradient of the input releases.")
    ] = 0.0,
    cap: Annotated[
        float | None, typer.Option(help="Refuse a schedule that holds more micro-batches than this.")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Forwards are done once more before their backwards.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    measured: Annotated[
        Path | None, typer.Option(help="A measured timeline, drawn below the simulated one.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the picture as a page.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the picture alone.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a trace for ui.perfetto.dev.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the program with its messages.")] = None,
) -> None:
    """Simulate a pipeline schedule: elapsed and idle time, memory, and what would help most."""
    gc.disable()  # a program of 10^5 nodes is all alive until the end: collecting finds nothing
    from shunter.config.errors import ShunterError
    from shunter.schedule import draw
    from shunter.schedule.assemble import assemble
    from shunter.schedule.catalogue import schedule as named
    from shunter.schedule.check import check
    from shunter.schedule.cost_file import finite, read_costs, read_sizes
    from shunter.schedule.costs import Costs, Links
    from shunter.schedule.lower import has_messages, lower
    from shunter.schedule.recompute import recomputed
    from shunter.schedule.simulate import simulate as run
    from shunter.schedule.summary import read_timeline, summary, what_helps
    from shunter.schedule.text import read_file, write_program
    from shunter.schedule.vocabulary import parallel_vocabulary, with_head

    if (schedule is None) == (program is None):
        raise ShunterError("give either --schedule or --program", mend="`shunter schedules` lists the names.")
    if not 0 <= released_at_input <= 1:
        raise ShunterError(f"--released-at-input is {released_at_input}", mend="Give a share from 0 to 1.")
    if recompute and program is not None:
        raise ShunterError("--recompute is for a --schedule", mend="Write the R actions into the program.")
    times = {"--forward": forward, "--input-grad": input_grad, "--weight-grad": weight_grad}
    if costs is not None and (given := [name for name, value in times.items() if value is not None]):
        raise ShunterError(
            f"both {costs} and {given[0]} say what an operation costs", mend="Leave one of the two out."
        )
    finite({**times, "--transfer": transfer, "--head": head, "--cap": None if cap == math.inf else cap})
    if links_ is not None and transfer:
        raise ShunterError(
            f"both {links_} and --transfer say how long a message takes", mend="Leave one of the two out."
        )
    if measured is not None and html is None and svg is None:
        raise ShunterError("--measured is for the picture", mend="Add --html FILE or --svg FILE.")
    below = [read_timeline(measured)] if measured is not None else []
    order = None
    if program is not None:
        name = program.name
        written = read_file(program)
        whole = written.program(released_at_input=released_at_input)
        check(whole, cap=cap)
        if vocabulary is not None:
            raise ShunterError(
                "--vocabulary changes a --schedule only", mend="Leave it out, or name a schedule."
            )
        placement = written.order.placement  # of replicas one: a stage costs the same on each
        microbatches = written.order.microbatches
    else:
        assert schedule is not None
        name = schedule
        order = named(schedule).build(ranks, microbatches, chunks=chunks, group=group)
        placement = order.placement
    if costs is not None:
        known = read_costs(costs, placement)
    else:
        known = Costs.even(placement, *(1.0 if value is None else value for value in times.values()))
    if order is not None:
        if vocabulary is not None:
            head = 1.0 if head is None else head
            order = parallel_vocabulary(order, vocabulary, known, head)
        order = recomputed(order) if recompute else order
        whole = assemble(order, released_at_input=released_at_input)
        if cap is not None:
            check(whole, cap=cap)
    known = with_head(known, whole, head or 0.0)
    if links_ is not None:
        from shunter.schedule.link_file import read_links

        sizes = read_sizes(costs) if costs is not None else {}
        links = read_links(links_, whole.ranks, sizes, blocking=blocking)
    elif blocking:
        links = Links(occupied=transfer, blocking=True)
    else:
        links = Links(latency=transfer)
    begin = time.perf_counter()
    found = run(whole, known, links)
    seconds = time.perf_counter() - begin
    told = summary(name, microbatches, found, seconds, vocabulary)
    helps = what_helps(whole, known, links, found.elapsed)[:5]
    wanted = [path for path in (html, svg, trace, csv) if path is not None]
    try:
        if html is not None or svg is not None:
            picture = draw.svg([found.timeline(), *below], found.held())
            if svg is not None:
                svg.write_text(picture, encoding="utf-8")
            if html is not None:
                html.write_text(draw.page(_title(told), picture, _facts(told, helps)), encoding="utf-8")
        if trace is not None:
            found.timeline(name).save_trace(trace)
        if csv is not None:
            if order is None:
                raise ShunterError("--csv writes a --schedule only", mend="Leave it out: you have the file.")
            lowered = whole if has_messages(whole) else lower(whole)
            csv.write_text(write_program(lowered, order), encoding="utf-8")
    except OSError as error:
        raise ShunterError(f"cannot be written ({error.strerror})", where=str(error.filename)) from None
    if json_:
        typer.echo(
            json.dumps({**told, "helps": [{"what": what, "saves": share} for what, share in helps]}, indent=1)
        )
        return
    typer.echo(_title(told))
    for key, value in _facts(told, helps):
        typer.echo(f"  {key:<25}{value}")
    _rows(found)
    for path in wanted:
        typer.echo(f"written: {path}")


def _title(told: dict[str, Any]) -> str:
    split = ", vocabulary on all ranks" if told["vocabulary"] else ""
    return f"{told['schedule']}{split}: {told['ranks']} ranks, {told['microbatches']} micro-batches"


def _facts(told: dict[str, Any], helps: list[tuple[str, float]]) -> list[tuple[str, str]]:
    peaks = [f"{peak:g}" for peak in told["peak_activations"]]
    facts = [
        ("elapsed", f"{told['elapsed']:g} in the unit of the costs (ideal {told['ideal']:g})"),
        ("idle/ideal", f"{told['idle_over_ideal']:.1%}"),
        ("longest span of a rank", f"{told['longest_span']:g}"),
        (
            "peak activations",
            f"{', '.join(peaks[:16])}{', ...' if len(peaks) > 16 else ''} micro-batches, by rank",
        ),
    ]
    if helps:
        best = "; ".join(f"{what} ({share:.1%})" for what, share in helps[:3])
        facts.append(("a tenth less helps most", best))
    return facts


def _rows(found: Simulation) -> None:
    """A character for each piece of time: the operation, or a dot where the rank is idle."""
    room = shutil.get_terminal_size((100, 24)).columns - 9
    if found.program.ranks > 16 or not found.elapsed:
        return
    width = min(room, max(20, round(found.elapsed * 2)))
    for rank in range(found.program.ranks):
        line = ["."] * width
        for node in found.program.lane(rank):
            a, b = (round(t / found.elapsed * width) for t in (found.begin[node.id], found.end[node.id]))
            for at in range(a, max(b, a + 1) if b < width else b):
                line[at] = node.op[0]
        typer.echo(f"rank {rank:<3} {''.join(line)}")
