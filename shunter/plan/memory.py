"""Bytes that a rank holds, stage by stage: the same figures filter the search and are printed with a plan.

weights, gradients, optimizer: of the rank's layers, cut as the layout cuts them; of the optimizer's state
each copy has a part where the practice shares it (ZeRO-1).
Of gradients there are other ranks' parts too, where whole ones wait to be given out (fsdp).
gathered: whole weights that are there for a while (fsdp).
activations: of all micro-batches in flight. inside: of the layers that are computed again, or put aside, at
once. passing: what is there for a moment: gradients of the inside of the layer whose backward runs, or copies
of gradients that are summed. logits: of the head. other: the device's context and buffers, and what the
allocator loses to fragments: no tensors of this program.

Where a parameter has no gradient before its backward, and all micro-batches are in flight before the first
backward, the first ones' activations go as gradients come: `gradients` is then what is there at the fullest
moment.

Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shunter.cluster.device import DeviceKind
from shunter.plan.choices import SCHEDULES, Choices, Floats, Ints, Question
from shunter.plan.practice import RECOMPUTE

TRAVEL = 2  # layers of a stage that are on the device while others are put aside (`parallel.offload.FLIGHT`)
PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "gathered",
    "activations",
    "inside",
    "passing",
    "logits",
    "other",
)


@dataclass(frozen=True)
class Held:
    """Parameters of one layer on a rank before sharding, and of the two ends."""

    dense: Floats  # of a layer, without experts: attention, norms, and the SwiGLU of a dense layer
    mixture: Floats  # of a layer with experts, without these: attention, norms, router, shared SwiGLU
    experts: Floats  # of a layer's experts
    end: Floats  # embedding, or head


def held(question: Question, choices: Choices) -> Held:
    """What tensor and expert parallelism leave on a rank."""
    spec = question.spec
    keys = np.maximum(spec.num_kv_heads / choices.tp, 1)
    attention = (spec.num_heads / choices.tp * 2 + 2 * keys) * spec.head_dim * spec.dim
    small = 2.0 * spec.dim
    dense = attention + small + 3 * spec.dim * spec.ffn_dim / choices.tp
    mixture, experts = dense * 0 + attention + small, np.zeros(len(choices))
    if (e := spec.experts) is not None:
        mixture = mixture + spec.dim * (e.num_experts + 3 * e.shared_ffn_dim / choices.tp)
        experts = 3 * spec.dim * e.ffn_dim * e.num_experts / (choices.ep * choices.etp)
    return Held(dense, mixture, experts, spec.vocab_size * spec.dim / choices.tp)


@dataclass(frozen=True)
class Stage:
    """Arrays as long as the choices: what a rank of the pipeline has.

    dense, mixtures: layers of each sort. ends: embedding and heads (0, 1 or 2). head: whether the head is
    there. flight: micro-batches whose activations are held, in those of the whole rank. recomputed, aside:
    shares of its layers that are computed again, and that wait in the host's memory.
    """

    dense: Floats
    mixtures: Floats
    ends: Floats
    head: Floats
    flight: Floats
    recomputed: Floats
    aside: Floats | float = 0.0


def ends_alone(stage: Stage) -> Stage:
    """The embedding and head of a rank, without its layers."""
    none = 0 * stage.dense
    return replace(stage, dense=none, mixtures=none, recomputed=none, aside=none)


def activations(question: Question, choices: Choices) -> Mapping[str, Floats]:
    """Bytes of one layer and micro-batch by what recomputation keeps (RECOMPUTE), and `mixture`: what a layer
    with experts has beyond a dense one, kept or not as `none` is."""
    spec, practice = question.spec, question.practice
    tokens = choices.rows * question.row / choices.cp
    own = tokens / choices.tp if practice.sequence else tokens
    heads = spec.num_heads / choices.tp
    keys = np.maximum(spec.num_kv_heads / choices.tp, 1)
    b, inputs = practice.compute, practice.hidden * own * spec.dim
    whole = b * tokens * spec.dim if practice.whole_inputs else b * own * spec.dim
    # Queries, keys, values, result.
    parts = ((1 + practice.results) * heads + 2 * keys) * spec.head_dim * tokens * b
    repeated = np.where(choices.cp == 1, 2 * (heads - keys), 0.0) * spec.head_dim * tokens * b
    inside = spec.ffn_dim / choices.tp * tokens * b
    scores = np.zeros(len(choices))
    if not practice.fused:  # softmax and its dropped form in 2 bytes, the mask in 1 (arXiv 2205.05198, 4.1)
        scores = 5 * heads * question.row**2 * choices.rows / choices.cp
    # Inputs of both norms, what they hand on, and gate, up, their product (and the activation's result).
    every = 2 * inputs + 2 * whole + parts + practice.inner * inside + scores
    every = every + repeated * practice.repeated
    selective = 2 * inputs + parts + inside + whole
    mixture = np.zeros(len(choices))
    if (e := spec.experts) is not None:
        mine = tokens / choices.tp
        rows = mine * e.per_token * choices.etp
        mixture = b * rows * (spec.dim + practice.inner * e.ffn_dim / choices.etp) + b * mine * spec.dim
        mixture = mixture + practice.inner * b * tokens * e.shared_ffn_dim / choices.tp
        mixture = mixture - whole - practice.inner * inside
    return {"none": every, "selective": selective, "layer": inputs, "stage": inputs * 0, "mixture": mixture}


def stage_bytes(question: Question, choices: Choices, stage: Stage, *, end: bool = True) -> dict[str, Floats]:
    """By part (PARTS), what a rank of this stage holds at most. end: also when all backwards are done."""
    parts, every, ended = _parts(question, choices, stage)
    return _whole(question, parts, every, ended if end else ended - np.inf)


def _whole(question: Question, parts: dict[str, Floats], every: Floats, ended: Floats) -> dict[str, Floats]:
    """With what a device has besides. every, ended: gradients when all backwards are done, and what is there
    then besides."""
    known = question.coefficients
    going = parts["gradients"] + parts["activations"] + parts["inside"]
    parts["passing"] = np.maximum(parts["passing"], every + ended - going)
    total = sum(parts.values(), np.zeros(len(every)))
    parts["other"] = known["fixed"] + known["margin"] * total
    return parts


def _parts(question: Question, choices: Choices, stage: Stage) -> tuple[dict[str, Floats], Floats, Floats]:
    practice = question.practice
    shape = held(question, choices)
    shards, spread = choices.shards(practice), choices.expert_shards(practice)
    plain = stage.dense * shape.dense + stage.mixtures * shape.mixture + stage.ends * shape.end
    expert = stage.mixtures * shape.experts
    mine = plain / shards + expert / spread
    layers = stage.dense + stage.mixtures
    kept = activations(question, choices)
    some = stage.mixtures / np.maximum(layers, 1e-9)
    full = kept["none"] + some * kept["mixture"]
    again = np.select(
        [choices.recompute == number for number in range(len(RECOMPUTE))],
        [full if name in ("none",) else kept[name] for name in RECOMPUTE],
    )
    entry = practice.hidden * choices.rows * question.row / choices.cp * question.spec.dim
    entry = entry / np.where(practice.sequence, choices.tp, 1)
    by_stage = choices.recompute == RECOMPUTE.index("stage")
    # Of all layers: as they are, and those matrices that are kept once more.
    copies = (stage.dense * shape.dense + stage.mixtures * (shape.mixture + shape.experts)) * practice.compute
    copies = copies if practice.copies else 0 * copies
    kept_whole = 1 - stage.recomputed - stage.aside
    per = layers * (kept_whole * full + stage.recomputed * again) + kept_whole * copies
    held_whole = layers * full + copies
    by_entry = entry * choices.chunks + (1 - stage.recomputed) * held_whole
    per = np.where(by_stage, np.where(layers > 0, by_entry, 0.0), per)
    # A rank holds `flight` whole micro-batches; the layer that is computed again is there besides, or those
    # that are on their way to the host's memory and back.
    travelling = TRAVEL * (full + copies / np.maximum(layers, 1.0))
    inside = np.where(
        by_stage,
        held_whole / choices.chunks - entry,
        np.where(stage.aside > 0, travelling, np.where(stage.recomputed > 0, full, 0.0)),
    )
    # What a stage was sent stays, though its first layer may be put aside.
    per = per + np.where((stage.aside > 0) & (choices.pp > 1), entry * choices.chunks, 0.0)
    # The head keeps the hidden states' gradient, and what it fetched of them.
    fetched = practice.hidden * choices.rows * question.row / choices.cp * question.spec.dim
    waiting_heads = np.where(by_stage, np.minimum(stage.flight, 1.0), stage.flight)
    last = stage.head * waiting_heads * (entry + fetched) if practice.whole_inputs else 0 * entry
    logits = question.scored * stage.head * practice.logits * choices.rows * question.row / choices.cp
    logits = logits * question.spec.vocab_size / choices.tp
    held_ones = stage.flight * per + last
    gathered, waiting, of_ends, ended = _gathered(question, choices, stage)
    every = gradients = mine * practice.gradients + waiting
    if practice.late:
        # Those of the head are made before the first backward.
        early = stage.head * (shape.end / shards * practice.gradients + of_ends)
        early = np.minimum(early, gradients)
        going = stage.flight >= choices.microbatches(question.batch)
        one = held_ones / np.maximum(stage.flight, 1.0)
        gradients = np.where(going, np.maximum(gradients - one, early), gradients)
    inside = np.where(stage.recomputed + stage.aside > 0, inside, 0.0)
    parts = {
        "weights": mine * practice.weights,
        "gradients": gradients,
        "optimizer": _optimizer(question, choices, stage),
        "gathered": sum(gathered, np.zeros(1)),
        "activations": held_ones,
        "inside": inside,
        "passing": np.where(layers > 0, passing(question, choices, stage.mixtures > 0), 0.0),
        "logits": logits,
    }
    return parts, every, ended


def _gathered(
    question: Question, choices: Choices, stage: Stage
) -> tuple[tuple[Floats, Floats], Floats, Floats, Floats]:
    """Bytes of whole weights: of the layer in use and of what another was fetched in, and of what stays: a
    stage, or embedding and head. Other ranks' parts of gradients that wait, and of embedding's and head's
    alone. And what is whole of gradients after the last backward, in sums or on the way to them."""
    practice, shape = question.practice, held(question, choices)
    plain = stage.dense * shape.dense + stage.mixtures * shape.mixture + stage.ends * shape.end
    each = np.where(stage.mixtures > 0, shape.mixture + shape.experts, shape.dense)
    whole = plain + stage.mixtures * shape.experts
    cut = (choices.shards(practice) > 1) | (choices.expert_shards(practice) > 1)
    stays = (choices.pp > 1) & practice.stage_gathered
    several = choices.microbatches(question.batch) > 1
    ends = stage.ends * shape.end
    ahead = np.minimum(2 * each, whole - ends) * practice.gathered
    others = 1 - 1 / choices.shards(practice), 1 - 1 / choices.expert_shards(practice)
    waits = stays | (several & practice.waits)
    waiting = np.where(waits, plain * others[0] + (whole - plain) * others[1], 0.0)
    of_ends = np.where(cut, ends * others[0], 0.0) * practice.gradients * practice.waits
    waiting = np.where(cut & waits, waiting * practice.gradients, of_ends)  # these are given out last
    staying = np.where(stays, whole, ends) * practice.gathered
    travelling = np.where(cut & ~waits, np.minimum(2 * each, whole - ends), 0.0) * practice.gradients
    summed = (choices.data * choices.cp > choices.shards(practice)) * practice.bucket
    own = (
        plain / choices.shards(practice) + (whole - plain) / choices.expert_shards(practice)
    ) * practice.gradients
    ended = np.maximum(travelling, np.minimum(summed, own)) if practice.late else 0 * own
    return (np.where(cut & ~stays, ahead, 0.0), np.where(cut, staying, 0.0)), waiting, of_ends, ended


def together(question: Question, parts: Sequence[tuple[Choices, Stage]]) -> dict[str, Floats]:
    """`stage_bytes` of a rank whose layers have several layouts, one after the other: each with those that
    have it. What is there for a layer at a time is there for one of them."""
    each_one = [_parts(question, choices, stage) for choices, stage in parts]
    found = [each for each, _, _ in each_one]
    total = {name: sum((each[name] for each in found), np.zeros(1)) for name in PARTS if name != "other"}
    ahead = [_gathered(question, choices, stage)[0][0] for choices, stage in parts]
    most: Floats = np.maximum.reduce(ahead)
    total["gathered"] = total["gathered"] - sum(ahead, np.zeros(1)) + most
    for name in ("inside", "passing"):
        total[name] = np.maximum.reduce([each[name] for each in found])
    every = sum((gradients for _, gradients, _ in each_one), np.zeros(1))
    return _whole(question, total, every, np.maximum.reduce([ended for _, _, ended in each_one]))


def _optimizer(question: Question, choices: Choices, stage: Stage) -> Floats:
    """Bytes of its state. A matrix that is cut has one owner, which keeps Muon's momentum and makes the
    update of the whole: on average over the ranks as much again as the momentum (`train.layout_describe`)."""
    practice, shape = question.practice, held(question, choices)
    updates, expert_updates = choices.updates(practice)
    ends = stage.ends * shape.end / updates * practice.optimizer
    plain = (stage.dense * shape.dense + stage.mixtures * shape.mixture) / updates
    expert = stage.mixtures * shape.experts / expert_updates
    if practice.matrices is None:
        return ends + (plain + expert) * practice.optimizer
    cut = (choices.tp > 1) | (choices.shards(practice) > 1)
    apart = (choices.etp > 1) | (choices.expert_shards(practice) > 1)
    return ends + practice.matrices * (plain * np.where(cut, 2, 1) + expert * np.where(apart, 2, 1))


def passing(question: Question, choices: Choices, mixture: npt.NDArray[np.bool_]) -> Floats:
    """Bytes of gradients that the backward of one layer makes on its way, at its widest: of gate, up and
    their product, of the hidden states, and where weights have none before, of the weights
    (`train.layout_moments`). mixture: whether it is a layer with experts."""
    spec, practice = question.spec, question.practice
    tokens = choices.rows * question.row / choices.cp
    own = tokens / choices.tp if practice.sequence else tokens
    width, passed = spec.ffn_dim / choices.tp, tokens
    weights = width * spec.dim
    if (e := spec.experts) is not None:
        passed = np.where(mixture, tokens / choices.tp * e.per_token * choices.etp, passed)
        width = np.where(mixture, e.ffn_dim / choices.etp, width)
        weights = np.where(mixture, e.num_experts / choices.ep * width * spec.dim, weights)
    weights = weights * practice.gradients if practice.late else 0 * weights
    inside = practice.compute * passed * width
    wider = np.maximum(3 * inside, inside + practice.compute * passed * spec.dim + 2 * weights)
    return np.where(practice.late, wider, 3 * inside) + weights + practice.hidden * own * spec.dim


def put_aside(question: Question, choices: Choices) -> Floats:
    """Bytes that one dense layer sends to the host's memory for a micro-batch, and gets back."""
    practice, shape = question.practice, held(question, choices)
    copies = shape.dense * practice.compute if practice.copies else 0 * shape.dense
    return activations(question, choices)["none"] + copies


def most_aside(question: Question, choices: Choices, device: DeviceKind, flight: Floats) -> Floats:
    """Layers of a rank for whose micro-batches in flight the host has room; without end where nobody says how
    much it has."""
    if device.host_memory is None:
        return np.full(len(choices), np.inf)
    return np.floor(device.host_memory / np.maximum(flight * put_aside(question, choices), 1.0))


def total(parts: Mapping[str, Floats]) -> Floats:
    """Bytes in all."""
    return sum((parts[name] for name in PARTS), np.zeros(1))


def in_flight(schedule_number: Ints, pp: Ints, chunks: Ints, microbatches: Ints, rank: Ints) -> Floats:
    """Most micro-batches whose activations a rank of the pipeline holds at once (equal to the simulator's
    peak: `tests/plan/test_memory.py`)."""
    p, m, v, r = (each.astype(float) for each in (pp, microbatches, chunks, rank))
    one = np.minimum(p - r, m)
    group = np.where(m >= p, p, m)
    turns = np.minimum(2 * (p - r - 1) + (v - 1) * group + 1, m * v) / v
    found = {
        "1f1b": one,
        "interleaved-1f1b": turns,
        "gpipe": m,
        "zb1p": np.minimum(p, m),
        "zbv": np.minimum(np.minimum(m, p), (m + 1 + r) / 2),
    }
    return np.select([schedule_number == SCHEDULES.index(name) for name in found], list(found.values()), 0.0)
