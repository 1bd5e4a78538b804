"""Sizes of tensor, pipeline and data parallelism and of micro-batches by rules (arXiv 2104.04473, section 3).

1. Tensor parallelism within a server, up to all of its devices; pipelines across servers.
2. Tensor times pipeline parallelism no larger than weights and state need; data parallelism for the rest.
3. The micro-batch for which (B' / b + (p - 1) / v) (t_f(b) + t_b(b)) is least, from measured times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shunter.config.errors import ShunterError
from shunter.plan.transformer import Shape, bubble, device_bytes

Times = Mapping[int, tuple[float, float]]  # rows of a micro-batch -> seconds of its forward, of its backward


@dataclass(frozen=True)
class Servers:
    """devices: in all. per_server: joined by fast links. memory: bytes of a device, of which `usable` is the
    share that weights, state and activations may take; buffers of messages and fragments need the rest."""

    devices: int
    per_server: int = 8
    memory: float = 80e9
    usable: float = 0.8


@dataclass(frozen=True)
class Candidate:
    """A layout; `lost` says why it was not chosen, and is empty for the one that was.

    microbatch: rows. chunks: stages a rank. memory: bytes of the fullest device. bubble: idle over ideal
    time. seconds: of a step without reductions, where times are known.
    """

    tensor: int
    pipeline: int
    data: int
    microbatch: int
    chunks: int
    memory: float
    bubble: float
    seconds: float | None
    lost: str = ""

    def __str__(self) -> str:
        return (
            f"t={self.tensor} p={self.pipeline} d={self.data} b={self.microbatch} v={self.chunks}: "
            f"{self.lost or 'chosen'}"
        )


def plan(
    shape: Shape, servers: Servers, batch: int, *, times: Times | None = None, chunks: int = 1
) -> list[Candidate]:
    """All layouts, the chosen one first, each other one with the reason why it lost.

    batch: rows of a step. times: of a stage by the rows of a micro-batch; without them one row is taken.
    chunks: stages a rank where there is a pipeline. Raises ShunterError where no layout can be.
    """
    sizes = sorted(times) if times else [1]
    found = [
        _candidate(shape, servers, batch, tensor, pipeline, rows, chunks, times)
        for tensor in _divisors(servers.devices)
        for pipeline in _divisors(servers.devices // tensor)
        for rows in sizes
    ]
    sound = [candidate for candidate in found if not candidate.lost]
    if not sound:
        closest = min(found, key=lambda candidate: candidate.memory)
        raise ShunterError(
            f"none of {len(found)} layouts can be; the one that needs least memory: {closest}",
            mend="Use more devices, a smaller model, or a batch and layers that divide better.",
        )
    least = min(candidate.tensor * candidate.pipeline for candidate in sound)
    within = max(c.tensor for c in sound if c.tensor * c.pipeline == least)
    same = [c for c in sound if (c.tensor, c.tensor * c.pipeline) == (within, least)]
    best = min(same, key=lambda c: (c.seconds or 0.0, -c.microbatch))
    judged = [_judge(candidate, best) for candidate in found]
    return sorted(judged, key=lambda c: (c is not best and c != best, bool(c.lost)))


def rule_three(rows: int, pipeline: int, times: Times, *, chunks: int = 1) -> dict[int, float]:
    """Predicted seconds of a step by the rows of a micro-batch, for those that divide `rows`, which is what
    one pipeline gets of the batch. times: of a whole rank."""
    return {
        size: (rows / size + (pipeline - 1) / chunks) * (forward + backward)
        for size, (forward, backward) in sorted(times.items())
        if rows % size == 0
    }


def _divisors(number: int) -> Sequence[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _candidate(
    shape: Shape,
    servers: Servers,
    batch: int,
    tensor: int,
    pipeline: int,
    rows: int,
    chunks: int,
    times: Times | None,
) -> Candidate:
    data = servers.devices // (tensor * pipeline)
    if pipeline == 1:
        chunks = 1
    microbatches = max(1, batch // (data * rows))
    memory = device_bytes(
        shape, tensor=tensor, pipeline=pipeline, rows=rows, chunks=chunks, microbatches=microbatches
    )
    seconds = None
    if times is not None:
        seconds = rule_three(microbatches * rows, pipeline, {rows: times[rows]}, chunks=chunks)[rows]
    share = bubble(pipeline, microbatches, chunks)
    found = Candidate(tensor, pipeline, data, rows, chunks, memory, share, seconds)
    return replace(found, lost=_impossible(shape, servers, batch, found))


def _impossible(shape: Shape, servers: Servers, batch: int, it: Candidate) -> str:
    """Why the layout cannot be at all; empty where it can."""
    rank, group = it.pipeline * it.chunks, it.data * it.microbatch
    room = servers.memory * servers.usable
    if it.tensor > servers.per_server:
        return f"tensor parallelism would cross servers of {servers.per_server} devices (rule 1)"
    if shape.heads % it.tensor:
        return f"{shape.heads} heads do not divide by {it.tensor}"
    if shape.layers % rank:
        return f"{shape.layers} layers do not divide by {rank} stages"
    if batch % group:
        return f"{batch} rows do not divide by {it.data} replicas of {it.microbatch} rows"
    microbatches = batch // group
    if it.chunks > 1 and microbatches % it.pipeline:
        return f"{microbatches} micro-batches do not pass {it.pipeline} ranks in whole groups"
    if it.memory > room:
        return f"needs {it.memory / 1e9:.1f} GB of a device, which has {room / 1e9:.1f} for it"
    return ""


def _judge(it: Candidate, best: Candidate) -> Candidate:
    if it.lost or it == best:
        return it
    size, least = it.tensor * it.pipeline, best.tensor * best.pipeline
    if size > least:
        lost = f"{size} devices for one model where {least} have room, so fewer replicas (rule 2)"
    elif it.tensor < best.tensor:
        lost = f"a pipeline of {it.pipeline} where tensor parallelism within the server would do (rule 1)"
    else:
        assert it.seconds is not None
        assert best.seconds is not None
        lost = (
            f"micro-batches of {it.microbatch} take {it.seconds / best.seconds:.3f} times as long as of "
            f"{best.microbatch} (rule 3)"
        )
    return replace(it, lost=lost)
