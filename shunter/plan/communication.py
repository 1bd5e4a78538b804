"""Seconds and bytes of what a rank sends, group by group. Imports without torch.

A ring's bytes, as `shunter.train.layout_traffic` has them: of n ranks, a gathering or a scattering sum of s
bytes in all sends s (n - 1) / n, an all-reduce twice that. Seconds: latency + bytes / bandwidth of the
slowest link that the ring passes (`Fabric.wire`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shunter.plan.choices import Choices, Floats, Ints, Question


@dataclass(frozen=True)
class Messages:
    """Seconds: of one layer in one pass (tensor, context, experts), of the embedding and of the head in one
    pass (end), of one layer's weights gathered once (gather), of one message between stages (hop), how long
    it keeps its link (occupied), and of the gathering of one that came in parts (received; arXiv 2104.04473,
    section 4.1)."""

    tensor: Floats
    end: Floats
    context: Floats
    experts: Floats
    gather: Floats
    hop: Floats
    occupied: Floats
    received: Floats


def messages(question: Question, choices: Choices, weights: Floats, expert_weights: Floats) -> Messages:
    """weights: parameters of one layer on a rank before sharding, without experts; expert_weights: theirs."""
    spec, practice = question.spec, question.practice
    tokens = choices.rows * question.row / choices.cp
    size = practice.compute * tokens * spec.dim
    one = np.ones_like(choices.tp)
    stride = choices.tp
    # Two regions a layer, each with a gathering and a scattering sum; or with two sums.
    if practice.sequence:
        tensor = 2 * (
            ring(question, one, choices.tp, size) + ring(question, one, choices.tp, size, "scatter")
        )
    else:
        tensor = 2 * all_reduce(question, one, choices.tp, size)
    tensor = tensor * (1 - practice.overlap_tensor)
    end = tensor / 4  # one region's one half: what enters the head, and what leaves the embedding
    heads = np.maximum(spec.num_kv_heads / choices.tp, 1)
    keys = 2 * practice.compute * tokens * heads * spec.head_dim * choices.cp
    context = ring(question, stride, choices.cp, keys)
    experts = np.zeros(len(choices))
    if spec.experts is not None:
        own = tokens / choices.tp
        passing = practice.compute * own * spec.experts.per_token * spec.dim
        experts = 2 * exchange(question, choices.etp, choices.ep, passing)
        experts = experts + 2 * ring(question, one, choices.etp, passing * choices.etp)
    shards = choices.shards(practice)
    gather = ring(question, stride, shards, practice.gathered * weights)
    gather = gather + ring(
        question,
        choices.ep * choices.etp,
        choices.expert_shards(practice),
        practice.gathered * expert_weights,
    )
    latency, bandwidth = question.fabric.hop(choices.stage_ranks, choices.pp)
    sent = message(question, choices)
    occupied = sent / (bandwidth * question.coefficients["links"])
    latency, occupied = hop(question, sent, latency, occupied)
    received = np.zeros(len(choices))
    if practice.scatter and not practice.sequence:
        whole = practice.hidden * tokens * spec.dim
        received = np.where(choices.pp > 1, ring(question, one, choices.tp, whole), 0.0)
    latency = np.where(choices.pp > 1, latency, 0.0)
    return Messages(tensor, end, context, experts, gather, latency, occupied, received)


def hop(question: Question, size: Any, latency: Any, occupied: Any) -> tuple[Any, Any]:
    """(latency, seconds that a link is occupied) of messages of `size` bytes between stages: as measured,
    where a profile has it, else as given."""
    if question.profile is None:
        return latency, occupied
    sizes = np.atleast_1d(np.asarray(size, float))
    two = np.full(len(sizes), 2)
    begun = _taken(question, "hop", two, np.full(len(sizes), 4.0), np.broadcast_to(latency, sizes.shape))
    taken = _taken(question, "hop", two, sizes, np.broadcast_to(latency + occupied, sizes.shape))
    taken = np.maximum(taken - begun, 0.0)
    return (begun, taken) if np.ndim(size) else (float(begun[0]), float(taken[0]))


def message(question: Question, choices: Choices) -> Floats:
    """Bytes that a rank sends to the next stage for one micro-batch."""
    practice = question.practice
    cut = choices.tp if practice.sequence or practice.scatter else np.ones_like(choices.tp)
    return practice.hidden * choices.rows * question.row / choices.cp * question.spec.dim / cut


def gradients(question: Question, choices: Choices, weights: Floats, expert_weights: Floats) -> Floats:
    """Seconds in which a rank's gradients are summed over the ranks that saw other tokens.

    weights: parameters of the rank before sharding. Cut ones are scattered among those that share, and then
    summed over copies; whole ones are summed over all.
    """
    practice = question.practice
    shards, spread = choices.shards(practice), choices.expert_shards(practice)
    size = practice.gradients * weights
    inner = ring(question, choices.tp, shards, size, "scatter")
    others = choices.data * choices.cp // shards
    outer = all_reduce(question, choices.tp * shards, others, size / shards)
    size = practice.gradients * expert_weights
    stride = choices.ep * choices.etp
    inner = inner + ring(question, stride, spread, size, "scatter")
    outer = outer + all_reduce(question, stride * spread, choices.edp // spread, size / spread)
    return inner + outer


def ring(question: Question, stride: Ints, count: Ints, size: Floats, kind: str = "gather") -> Floats:
    """Seconds of a gathering of `size` bytes in all, or of a scattering sum of them (`kind`)."""
    latency, bandwidth = question.fabric.wire(stride, count)
    sent = size * (count - 1) / count
    return _taken(question, kind, count, size, latency + sent / (bandwidth * question.coefficients.ring))


def all_reduce(question: Question, stride: Ints, count: Ints, size: Floats) -> Floats:
    """Seconds of a sum of `size` bytes that all have afterwards."""
    latency, bandwidth = question.fabric.wire(stride, count)
    sent = 2 * size * (count - 1) / count
    counted = 2 * latency + sent / (bandwidth * question.coefficients.ring)
    return _taken(question, "sum", count, size, counted)


def _taken(question: Question, kind: str, count: Ints, size: Floats, counted: Floats) -> Floats:
    """As measured, where a profile has it, else as counted; nothing for one rank, and for no bytes."""
    if question.profile is not None:
        links = question.coefficients["links"]
        counted = question.profile.message(kind, count, size, counted * links) / links
    return np.where((count > 1) & (size > 0), counted, 0.0)


def exchange(question: Question, stride: Ints, count: Ints, size: Floats) -> Floats:
    """Seconds in which each rank sends each other one its part of `size` bytes: only a link's own share
    carries what leaves a block, unlike in a ring."""
    latency, bandwidth = question.fabric.hop(stride, count)
    sent = size * (count - 1) / count
    return np.where(count > 1, latency + sent / (bandwidth * question.coefficients.ring), 0.0)
