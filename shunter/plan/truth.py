"""A step by event simulation: pipelines over links that differ by pair, and the rings after them.

This is the judge of formulas, and it is a simulation, not a measurement: say so wherever its numbers stand.
Bytes are counted here from the model's matrices, one by one, not by the formulas that are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

from shunter.plan.pipette import Choice, Nodes
from shunter.plan.transformer import Shape
from shunter.schedule.action import BACKWARD, FORWARD
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs, Links
from shunter.schedule.program import Program
from shunter.schedule.simulate import simulate

SENT = 2  # bytes of a number


def matrices(shape: Shape) -> dict[str, list[tuple[int, ...]]]:
    """Sizes of all tensors of GPT with learnt positions left out: of a layer, the embedding, the head."""
    width, words = shape.hidden, shape.vocabulary
    layer: list[tuple[int, ...]] = [
        (width,), (width,),  # the norm before attention
        (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,),  # the norm before the feed-forward part
        (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return {"layer": layer, "embedding": [(words, width)], "head": [(width, words)]}


def sent_by_stage(shape: Shape, choice: Choice) -> list[float]:
    """Bytes of gradients that a device of each stage has, layers spread evenly."""
    parts = {name: sum(prod(sizes) for sizes in tensors) for name, tensors in matrices(shape).items()}
    found = []
    for stage in range(choice.pp):
        weights = parts["layer"] * shape.layers / choice.pp
        weights += parts["embedding"] if stage == 0 else 0
        weights += parts["head"] if stage == choice.pp - 1 else 0
        found.append(SENT * weights / choice.tp)
    return found


def passed_on(shape: Shape, choice: Choice) -> float:
    """Bytes of a micro-batch's activations between two stages: a vector for each token of each row."""
    tokens = choice.rows * shape.sequence
    return float(SENT * tokens * shape.hidden)


def simulated_step(
    shape: Shape, nodes: Nodes, choice: Choice, grid: Sequence[int], speeds: Sequence[float] | None = None
) -> float:
    """Seconds of a 1F1B step of this layout with nodes placed so: each pipeline's events with its own links,
    then each stage's all-reduce, within nodes and around the ring of nodes, once all of its replicas are
    done.

    A forward takes a third of C. The k pipelines of a node run alike and share its link. speeds: of each
    node, 1 by default."""
    pp = choice.pp
    k = choice.replicas(nodes.devices)
    message, grads = passed_on(shape, choice) * k, sent_by_stage(shape, choice)
    return pipelines_step(
        grid, pp, choice.microbatches,
        forward=lambda node, stage: choice.compute / 3 / (speeds[node] if speeds else 1.0),
        hop=lambda a, b: (nodes.latency[a][b], message / nodes.bandwidth[a][b]),
        reduce=lambda ring, stage: _reduce(nodes, ring, k, grads[stage]),
    )  # fmt: skip


def pipelines_step(
    grid: Sequence[int],
    pp: int,
    microbatches: int,
    *,
    forward: Callable[[int, int], float],
    hop: Callable[[int, int], tuple[float, float]],
    reduce: Callable[[Sequence[int], int], float],
) -> float:
    """Seconds of a 1F1B step of the rows of `grid`, each a pipeline of `pp` nodes: each one's events with its
    own links, then each stage's all-reduce once all of its replicas are done.

    forward: (node, stage) -> seconds of a micro-batch; its backward takes twice that. hop: (from, to) ->
    (latency, seconds for which a message keeps the link). reduce: (nodes, stage) -> seconds."""
    program = _program(pp, microbatches)
    ready = [0.0] * pp
    ends = [0.0]
    for row in range(len(grid) // pp):
        held = grid[row * pp : (row + 1) * pp]
        single = [forward(node, stage) for stage, node in enumerate(held)]
        seconds = {(FORWARD, stage): time for stage, time in enumerate(single)}
        seconds |= {(BACKWARD, stage): 2 * time for stage, time in enumerate(single)}
        between = {(a, b): hop(held[a], held[b]) for a in range(pp) for b in (a - 1, a + 1) if 0 <= b < pp}
        done = simulate(program, Costs(seconds), Links(between=between))
        for stage in range(pp):
            last = done.end[program.order[stage, "compute"][-1]]
            ready[stage] = max(ready[stage], last)
        ends.append(done.elapsed)
    ends += [ready[stage] + reduce(grid[stage::pp], stage) for stage in range(pp)]
    return max(ends)


def _reduce(nodes: Nodes, ring: Sequence[int], k: int, size: float) -> float:
    """An all-reduce of `size` bytes a device: within each node, and k rings that share each node's link. In
    each round every member passes a part on, and the slowest link is waited for."""
    total = 0.0
    if k > 1:
        total += max(2 * (k - 1) * (size / k / nodes.bandwidth[n][n] + nodes.latency[n][n]) for n in ring)
    if len(ring) > 1:
        e = len(ring)
        links = [(ring[at - 1], ring[at]) for at in range(e)]
        slowest = max(size / e / nodes.bandwidth[a][b] + nodes.latency[a][b] for a, b in links)
        total += 2 * (e - 1) * slowest
    return total


@lru_cache(maxsize=256)
def _program(pp: int, microbatches: int) -> Program:
    return assemble(schedule("1f1b").build(pp, microbatches))
