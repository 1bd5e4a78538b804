"""Seconds and bytes of many layouts by formulas: the first look, which keeps the few that are simulated.

Imports without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shunter.cluster.device import DeviceKind
from shunter.plan import communication, compute, memory
from shunter.plan.choices import SCHEDULES, Choices, Floats, Question
from shunter.plan.practice import RECOMPUTE

COPIES = 20  # storages that a layer keeps for its backward, counted, less the norms' weights: each is a call


class Pass(NamedTuple):
    """Seconds of a micro-batch in one layer: what is computed, and what messages add to it."""

    compute: Floats
    messages: Floats

    @property
    def both(self) -> Floats:
        return self.compute + self.messages


@dataclass(frozen=True)
class LayerCost:
    """One layer on a rank. again: what is computed (and sent) once more under the choice's recomputation.
    weights: share of the backward's compute that is the weights' gradients. aside: seconds that a layer takes
    longer, forward and backward, where it is put aside; None where it cannot be."""

    forward: Pass
    backward: Pass
    again: Pass
    weights: Floats
    aside: tuple[Floats, Floats] | None = None


@dataclass(frozen=True)
class Costs:
    """dense, mixture: a layer of each sort; where the model has none of a sort, it is the other one.
    gather_end: seconds of a micro-batch in which the weights of the embedding, or of the head, are waited
    for; with stages they are gathered once a step."""

    dense: LayerCost
    mixture: LayerCost
    embedding: compute.Times
    head: compute.Times
    messages: communication.Messages
    gather_end: Floats


def costs(question: Question, choices: Choices, device: DeviceKind) -> Costs:
    """What a rank with this device takes for one micro-batch."""
    spec = question.spec
    shape = memory.held(question, choices)
    dense = mixture = _layer(question, choices, device, shape.dense, 0 * shape.experts, experts=False)
    if spec.experts is not None:
        mixture = _layer(question, choices, device, shape.mixture, shape.experts, experts=True)
    sent = communication.messages(question, choices, shape.dense, 0 * shape.experts)
    return Costs(
        dense,
        mixture,
        compute.embedding(question, choices, device),
        compute.head(question, choices, device),
        sent,
        np.where(choices.pp > 1, 0.0, _gathered_end(question, choices)),
    )


def _gathered_end(question: Question, choices: Choices) -> Floats:
    """Seconds in which the weights of one end are gathered, where the practice waits for them."""
    if not question.practice.ends_waited:
        return np.zeros(len(choices))
    size = question.practice.weights * memory.held(question, choices).end
    return communication.ring(question, choices.tp, choices.shards(question.practice), size)


def _layer(
    question: Question,
    choices: Choices,
    device: DeviceKind,
    weights: Floats,
    expert_weights: Floats,
    *,
    experts: bool,
) -> LayerCost:
    times = compute.layer(question, choices, device, experts=experts)
    sent = communication.messages(question, choices, weights, expert_weights)
    routed = sent.experts if experts else 0 * sent.experts
    # Keys and values of the next part travel while this part's attention is computed; back twice as much.
    ring = np.maximum(sent.context - times.attention, 0.0)
    back = np.maximum(2 * sent.context - 2 * times.attention, 0.0)
    stays = (choices.pp > 1) & question.practice.stage_gathered
    gather = np.where(stays, 0.0, sent.gather)
    # A CPU has no second stream: what gathers weights there is waited for.
    waits, behind = (gather, 0 * gather) if device.type == "cpu" else (0 * gather, gather)
    forward = _hidden(times.forward, sent.tensor + ring + routed + waits, behind, device)
    backward = _hidden(times.backward, sent.tensor + back + routed + waits, behind, device)
    once = Pass(times.forward, sent.tensor + ring + routed)
    # Half of the products are kept, and attention; the rest is computed again (torchtitan's `op`).
    half = Pass((times.forward - times.attention) / 2, sent.tensor / 2)
    share = {"none": 0.0, "selective": 1.0, "layer": 1.0, "stage": 1.0}
    again = Pass(
        *(
            np.select(
                [choices.recompute == number for number in range(len(RECOMPUTE))],
                [
                    np.full(len(choices), share[name]) * getattr(half if name == "selective" else once, part)
                    for name in RECOMPUTE
                ],
            )
            for part in ("compute", "messages")
        )
    )
    return LayerCost(forward, backward, again, times.weights, _aside(question, choices, times, device))


def _aside(
    question: Question, choices: Choices, times: compute.Times, device: DeviceKind
) -> tuple[Floats, Floats] | None:
    """Copies go beside what is computed, and are waited for where they take longer. A schedule with backwards
    in halves would hold what came back until the second one, so none is put aside there."""
    if not question.practice.offload or device.copy_bandwidth is None:
        return None
    copy: Floats = memory.put_aside(question, choices) / device.copy_bandwidth
    copy = copy + COPIES * question.coefficients["kernel"]
    nothing = np.zeros(len(choices))
    return (
        _hidden(times.forward, nothing, copy, device).messages,
        _hidden(times.backward, nothing, copy, device).messages,
    )


def _hidden(compute_seconds: Floats, exposed: Floats, behind: Floats, device: DeviceKind) -> Pass:
    """A pass with messages in between, and others behind what it computes, which these slow down."""
    busy = compute_seconds + exposed
    slower = (device.overlap_slowdown - 1) * np.minimum(compute_seconds, behind)
    return Pass(compute_seconds, exposed + slower + np.maximum(behind - busy, 0.0))


@dataclass(frozen=True)
class Estimate:
    """seconds: of a step. bytes: of the fullest rank. spare: layers might be computed again, and none has to
    be."""

    seconds: Floats
    bytes: Floats
    microbatch: Floats  # seconds of the busiest rank for one micro-batch
    spare: npt.NDArray[np.bool_]


def estimate(question: Question, choices: Choices, room: float | None = None) -> Estimate:
    """By formulas, with stages of L / p layers, which need not be whole: a look ahead, not a prediction.

    room: bytes of a rank: where layers can be chosen, as few as that needs are computed again, or put aside;
    without it all are.
    """
    spec, device = question.spec, question.fabric.device
    found = costs(question, choices, device)
    mixtures = mixture_layers(question)
    plain = spec.num_layers - mixtures
    m = choices.microbatches(question.batch).astype(float)
    p, v = choices.pp.astype(float), choices.chunks.astype(float)
    lean = _lean(question, choices, found, plain / p, mixtures / p, room, device)
    forward = (plain * found.dense.forward.both + mixtures * found.mixture.forward.both) / p
    backward = (
        plain * (found.dense.backward.both + lean.seconds(found.dense))
        + mixtures * (found.mixture.backward.both + lean.seconds(found.mixture))
    ) / p
    ends = found.embedding.forward + found.embedding.backward + found.head.forward + found.head.backward
    ends = ends + 4 * found.messages.end + np.where(spec.tied, 1.0, 2.0) * found.gather_end
    layer = (forward + backward) * p / spec.num_layers
    # A rank has whole layers: the busiest at least as many as come to the mean, and one layer at least.
    mean = forward + backward + ends / p
    busiest = np.maximum(mean, np.maximum(np.ceil(mean / layer - 1e-9) - ends / layer, 1.0) * layer)
    busiest = np.where(choices.pp == 1, forward + backward + ends, busiest)
    weights = (plain * found.dense.weights + mixtures * found.mixture.weights) / spec.num_layers
    drain = np.select(
        [choices.schedule == SCHEDULES.index(name) for name in ("interleaved-1f1b", "zb1p", "zbv")],
        [busiest / v, busiest - 2 * weights * backward, 0.5 * forward],
        busiest,
    )
    # A stage is computed again while its rank would wait for the gradient.
    redone = (plain * lean.seconds(found.dense) + mixtures * lean.seconds(found.mixture)) / p
    drain = drain - np.where(choices.recompute == RECOMPUTE.index("stage"), redone, 0.0)
    hops = found.messages.hop + found.messages.occupied
    exposed = m * v * found.messages.occupied * 2 * (1.0 if question.practice.blocking else 0.0)
    exposed = exposed + 2 * m * v * found.messages.received
    bubble = (p - 1) * (np.maximum(drain, 0.0) + 2 * hops)
    seconds = m * busiest + bubble + np.where(choices.pp > 1, exposed, 0.0)
    seconds = seconds + ends_of_step(question, choices, found, plain / p, mixtures / p, backward, device)
    spare = (choices.recompute == RECOMPUTE.index("layer")) & (lean.again + lean.aside <= 0)
    return Estimate(seconds, lean.bytes, busiest, spare)


@dataclass(frozen=True)
class Lean:
    """Shares of the layers that are computed again and put aside, and the bytes of the fullest rank then."""

    again: Floats
    aside: Floats
    bytes: Floats

    def seconds(self, layer: LayerCost) -> Floats:
        """More of the mean layer: of those that are computed again or put aside, what takes less."""
        again = layer.again.both
        if layer.aside is None:
            return self.again * again
        put = layer.aside[0] + layer.aside[1]
        return self.again * np.minimum(again, put) + self.aside * put


def _lean(
    question: Question,
    choices: Choices,
    found: Costs,
    dense: Floats,
    mixtures: Floats,
    room: float | None,
    device: DeviceKind,
) -> Lean:
    every = np.where(choices.recompute > 0, 1.0, 0.0)
    nothing = 0 * every
    most = _fullest(question, choices, dense, mixtures, every, nothing)
    free = (choices.recompute == RECOMPUTE.index("layer")) & question.practice.offers
    if not free.any():
        return Lean(every, nothing, most)
    which = np.flatnonzero(free)
    some = choices.take(which)

    def bytes_(again: float, aside: float) -> Floats:
        parts = np.full(len(which), again), np.full(len(which), aside)
        return _fullest(question, some, dense[which], mixtures[which], *parts)

    again, aside, least = every.copy(), nothing.copy(), most.copy()
    tight = most[which] > (np.inf if room is None else room)
    if found.dense.aside is not None:
        m = some.microbatches(question.batch)
        flight = memory.in_flight(some.schedule, some.pp, some.chunks, m, 0 * some.pp)
        layers = np.maximum(dense[which] + mixtures[which], 1.0)
        share = np.minimum(memory.most_aside(question, some, device, flight) / layers, 1.0)
        put = _fullest(question, some, dense[which], mixtures[which], 1 - share, share)
        better = (put < most[which]) & (tight | (room is None))
        again[which], aside[which] = np.where(better, 1 - share, 1.0), np.where(better, share, 0.0)
        least[which] = np.where(better, put, most[which])
    if room is not None:
        kept, one = bytes_(0.0, 0.0), bytes_(1e-9, 0.0)  # the first of them takes room for its inside
        share = np.clip((one - room) / np.maximum(one - most[which], 1.0), 0.0, 1.0)
        layers = np.maximum(dense[which] + mixtures[which], 1.0)
        share = np.where(kept <= room, 0.0, np.minimum(np.ceil(share * layers - 1e-9) / layers, 1.0))
        again[which] = np.where(tight, again[which], share)
        least[which] = np.where(tight, least[which], np.minimum(kept, room))
    return Lean(again, aside, least)


def ends_of_step(
    question: Question,
    choices: Choices,
    found: Costs,
    dense: Floats,
    mixtures: Floats,
    backward: Floats,
    device: DeviceKind,
    *,
    layers_only: bool = False,
) -> Floats:
    """Seconds before the first and after the last micro-batch that nothing hides: weights gathered once,
    gradients summed, the optimizer. layers_only: without embedding and head."""
    practice = question.practice
    shape = memory.held(question, choices)
    ends = np.where(choices.pp == 1, 2.0, 1.0) * shape.end * (not layers_only)
    plain, expert = dense * shape.dense + mixtures * shape.mixture + ends, mixtures * shape.experts
    sums = communication.gradients(question, choices, plain, expert)
    if practice.overlap_gradients:
        # The last layer's come when all is done.
        sums = np.maximum(sums - backward, sums / np.maximum(dense + mixtures, 1.0))
    updates, expert_updates = choices.updates(practice)
    mine = plain / updates + expert / expert_updates
    stays = (choices.pp > 1) & practice.stage_gathered
    first = (dense + mixtures) * found.messages.gather
    first = first + (0.0 if layers_only else 1.0) * _gathered_end(question, choices)
    first = np.where(stays, first, 0.0)
    return sums + first + compute.update(question, mine, device)


def mixture_layers(question: Question) -> int:
    """Layers that have experts."""
    spec = question.spec
    if spec.experts is None:
        return 0
    return sum(spec.experts.inside(layer) for layer in range(spec.num_layers))


def _fullest(
    question: Question, choices: Choices, dense: Floats, mixtures: Floats, again: Floats, aside: Floats
) -> Floats:
    """Bytes of the fuller of the first and the last rank: the first has most in flight, the last the head.
    again, aside: shares of the layers."""
    m = choices.microbatches(question.batch)
    alone = choices.pp == 1
    vee = choices.schedule == SCHEDULES.index("zbv")
    both = []
    for rank, end in ((0 * choices.pp, "first"), (choices.pp - 1, "last")):
        flight = memory.in_flight(choices.schedule, choices.pp, choices.chunks, m, rank)
        has_head = alone | vee if end == "first" else ~vee | alone
        ends = np.where(alone | (vee & (rank == 0)), 2.0, np.where(vee, 0.0, 1.0))
        tied = question.spec.tied & alone
        stage = memory.Stage(
            dense,
            mixtures,
            np.where(tied, 1.0, ends),
            has_head.astype(float),
            flight,
            again,
            aside,
        )
        both.append(memory.total(memory.stage_bytes(question, choices, stage)))
    return np.maximum(*both)
