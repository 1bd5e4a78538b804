"""What a simulation says, as plain data; and what would make it shorter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from shunter.record.timeline import Timeline
from shunter.schedule.action import named
from shunter.schedule.costs import Costs, Links
from shunter.schedule.program import Program
from shunter.schedule.simulate import Simulation, simulate

LESS = 0.1  # how much cheaper something is made, to see what it is worth
LARGEST = 20_000  # nodes; larger programs are not simulated again for each of their costs


def summary(name: str, microbatches: int, found: Simulation, seconds: float) -> dict[str, Any]:
    """The fields of `shunter simulate --json`. seconds: how long simulating took."""
    return {
        "schedule": name,
        "ranks": found.program.ranks,
        "microbatches": microbatches,
        "elapsed": found.elapsed,
        "ideal": found.ideal,
        "idle_over_ideal": found.idle_over_ideal,
        "longest_span": found.longest_span,
        "peak_activations": found.peak_activations,
        "critical_path": [str(node) for node in found.critical_path()],
        "seconds": seconds,
    }


@dataclass(frozen=True)
class Figures:
    """What a timeline shows, measured or simulated, in its unit of time: first begin to last end, work of the
    busiest rank, and the longest time from a rank's first begin to its last end."""

    ranks: int
    elapsed: float
    ideal: float
    longest_span: float

    @property
    def idle_over_ideal(self) -> float:
        return self.elapsed / self.ideal - 1 if self.ideal else 0.0


def figures(timeline: Timeline) -> Figures:
    """Figures of a timeline whose ranks do one thing at a time."""
    work: dict[int, float] = {}
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for span in timeline:
        rank = span.rank
        work[rank] = work.get(rank, 0.0) + span.seconds
        first[rank] = min(first.get(rank, span.begin), span.begin)
        last[rank] = max(last.get(rank, span.end), span.end)
    spans = (last[rank] - first[rank] for rank in work)
    return Figures(len(work), timeline.elapsed, max(work.values(), default=0.0), max(spans, default=0.0))


def what_helps(program: Program, costs: Costs, links: Links, elapsed: float) -> list[tuple[str, float]]:
    """(what, share of the elapsed time saved) if one thing were a tenth cheaper; the most useful first.

    Only what saves something. Empty for programs of more than LARGEST nodes.
    """
    if len(program.nodes) > LARGEST or not elapsed:
        return []
    saved = [
        (what, 1 - simulate(program, cheaper, faster).elapsed / elapsed)
        for what, cheaper, faster in _changes(program, costs, links)
    ]
    return sorted(((what, share) for what, share in saved if share > 1e-9), key=lambda pair: -pair[1])


def _changes(program: Program, costs: Costs, links: Links) -> Iterator[tuple[str, Costs, Links]]:
    used = sorted({(node.stage, node.part, node.op) for node in program.nodes})
    for stage, part, op in used:
        if price := costs.of(op, stage, part) * (1 - LESS):
            cheaper = (
                replace(costs, parts={**costs.parts, (op, stage, part): price})
                if part
                else replace(costs, seconds={**costs.seconds, (op, stage): price})
            )
            yield f"{op} of stage {named(stage, part)}", cheaper, links
    less = 1 - LESS
    between = {pair: (late * less, busy * less) for pair, (late, busy) in links.between.items()}
    if links.latency or links.occupied or between:
        faster = replace(links, latency=links.latency * less, occupied=links.occupied * less, between=between)
        yield "every link", costs, faster
