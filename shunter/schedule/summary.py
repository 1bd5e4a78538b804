"""What a simulation says, as plain data; and what would make it shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.record.timeline import Span, Timeline
from shunter.schedule.action import BACKWARD, FORWARD, RECOMPUTE, WEIGHT, named
from shunter.schedule.costs import Costs, Links
from shunter.schedule.program import COMPUTE_LANE, Program
from shunter.schedule.simulate import Simulation, simulate

LESS = 0.1  # how much cheaper something is made, to see what it is worth
LARGEST = 20_000  # nodes; larger programs are not simulated again for each of their costs


def summary(
    name: str, microbatches: int, found: Simulation, seconds: float, vocabulary: int | None = None
) -> dict[str, Any]:
    """The fields of `shunter simulate --json`. seconds: how long simulating took; vocabulary: the algorithm
    by which embedding and head stand on all ranks, if they do."""
    return {
        "schedule": name,
        "vocabulary": vocabulary,
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


def read_timeline(path: Path, name: str = "measured") -> Timeline:
    """What ranks computed, from a kept timeline. Raises ShunterError for a file that is none."""
    try:
        timeline = Timeline.load(path)
        spans = [span for span in timeline if span.lane == COMPUTE_LANE]
        sound = bool(spans) and all(isinstance(s.rank, int) and isinstance(s.args, Mapping) for s in spans)
    except OSError as error:
        raise ShunterError(
            f"the timeline cannot be read: {error.strerror}", where=str(path), mend="Name a file."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ShunterError(
            "the file is no timeline with actions of ranks",
            where=str(path),
            mend="Name a timeline-measured.json of a job's log.",
        )
    return Timeline(spans, name=name)


def held(timeline: Timeline) -> dict[int, list[tuple[float, float]]]:
    """For each rank, (time, activations held from then on) in micro-batches of the whole rank.

    Measured or simulated alike, from what the spans say: a forward (or its recomputation, before which only
    inputs are kept) takes its share, a whole backward or the weights' half of one gives it back.
    """
    spans: dict[int, list[Span]] = {}
    for span in sorted(timeline, key=lambda span: span.begin):
        if span.lane == COMPUTE_LANE and span.args.get("op") in (FORWARD, RECOMPUTE, BACKWARD, WEIGHT):
            spans.setdefault(span.rank, []).append(span)
    found: dict[int, list[tuple[float, float]]] = {}
    for rank, mine in spans.items():
        if all(span.args["op"] == FORWARD for span in mine):
            continue  # nothing is kept for backwards that do not come
        # `0F1` and `0.headF1` are of two parts.
        share = 1 / max(1, len({s.name.partition(FORWARD)[0] for s in mine if s.args["op"] == FORWARD}))
        again = {(s.args.get("stage"), s.args.get("microbatch")) for s in mine if s.args["op"] == RECOMPUTE}
        amount, curve = 0.0, []
        for span in mine:
            op, key = span.args["op"], (span.args.get("stage"), span.args.get("microbatch"))
            if op == FORWARD and key in again:
                continue
            taken = op in (FORWARD, RECOMPUTE)
            amount += share if taken else -share
            curve.append((span.begin if taken else span.end, round(amount, 9)))
        found[rank] = curve
    return found


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
