"""Seconds of a layer, the embedding and the head on one rank: counted, or measured. Imports without torch.

Measured where the question has a profile of the model on its machine (`plan.profile`).

Counted: each matrix product at its device's rate for the class of its smallest dimension, no faster than its
operands can be read; attention at its own rate; what is done element by element at the memory's bandwidth;
and no less than its kernels take to launch. On an H100 a layer of Llama 3 8B (2 rows of 8192 tokens, bf16,
compiled) takes 13.1 ms forward and 28.5 ms backward, counted 12.8 and 28.0 (`tests/plan/test_compute.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shunter.cluster.device import CLASSES, DeviceKind
from shunter.config.errors import ShunterError
from shunter.plan.choices import Choices, Floats, Question

BOUNDS = (256, 1024, 4096)  # as `shunter.cluster.device.shape_class`
# Kernels of a router, of bringing rows to experts and back, beside a dense layer's: counted as torch
# dispatches them for shunter.models.moe, forward and backward. Each is short, however many tokens there are.
ROUTING = 39, 45
ITERATIONS = 5  # of Newton and Schulz in an update of Muon (torch.optim.Muon's default)
# Shares of the peak that an H100 reaches by class of shape, measured but for `tiny`
# (shunter/cluster/machines/8xh100.yaml).
UNMEASURED = {"tiny": 0.25, "small": 0.45, "medium": 0.65, "large": 0.72, "attention": 0.61}
# Bytes of a score in memory, forward: written (2), softmax (reads 2, writes 2), dropout (2, 2, and a mask of
# 1), read (2); backward: its gradient written and its result read (4), dropout (2, 1, 2), softmax (4, 2), its
# gradient read twice (4).
SCORES = 13, 19


@dataclass(frozen=True)
class Times:
    """Seconds of one micro-batch. weights: share of the backward that is the weights' gradients.
    attention: of the forward, what attention takes."""

    forward: Floats
    backward: Floats
    weights: Floats
    attention: Floats


def layer(question: Question, choices: Choices, device: DeviceKind, *, experts: bool = False) -> Times:
    """One layer on a rank, without messages."""
    spec, practice, known = question.spec, question.practice, question.coefficients
    tokens = choices.rows * question.row / choices.cp
    own = tokens / choices.tp
    heads = spec.num_heads / choices.tp
    keys = np.maximum(spec.num_kv_heads / choices.tp, 1)
    qkv, turned = (heads + 2 * keys) * spec.head_dim, (heads + keys) * spec.head_dim
    out = heads * spec.head_dim
    dim = np.full(len(choices), float(spec.dim))
    products = [(tokens, qkv, dim), (tokens, dim, out)]
    inside = spec.ffn_dim / choices.tp
    moved = tokens * inside
    if not experts:
        products += [(tokens, 2 * inside, dim), (tokens, dim, inside)]
        every = 1.0 * np.ones(len(choices))
    else:
        assert spec.experts is not None
        mine = spec.experts.num_experts / choices.ep
        passing = own * spec.experts.per_token * choices.etp / mine
        width = spec.experts.ffn_dim / choices.etp
        moved = mine * passing * width
        every = mine
        shared = spec.experts.shared_ffn_dim / choices.tp
        if spec.experts.shared_ffn_dim:
            products += [(tokens, 2 * shared, dim), (tokens, dim, shared)]
            moved = moved + tokens * shared
    done = _products(question, device, products)
    weights = sum((n * k for _, n, k in products), np.zeros(1))
    routed = np.zeros(1)
    if experts:
        assert spec.experts is not None
        each = _products(question, device, [(passing, 2 * width, dim), (passing, dim, width)])
        done = done + every * each / known["grouped"]
        weights = weights + every * 3 * dim * width
        rows = mine * passing
        routed = practice.elementwise.routed * rows * spec.dim + practice.elementwise.scaled * rows * width
    seen = _pairs(question) * choices.rows / choices.cp
    attention = 4 * out * seen / _attention_rate(question, device)
    attention = attention * (1 + known["context"] * (1 - 1 / choices.cp))
    move = practice.elementwise
    wide = own if practice.sequence else tokens
    elements = move.width * wide * spec.dim + move.inside * moved + move.heads * tokens * turned + routed
    # Of context parts, each but the first is merged into the result: both are read, one is written.
    elements = elements + 3 * (choices.cp - 1) * tokens * out
    size = practice.compute * elements + practice.casts * _operands(products)
    bandwidth = device.memory_bandwidth * known["memory"]
    moving = size / bandwidth
    scores = np.zeros(1) if practice.fused else heads * seen / bandwidth
    least = practice.kernels * known["kernel"]
    short = (ROUTING[0] * known["kernel"], ROUTING[1] * known["kernel"]) if experts else (0.0, 0.0)
    forward = np.maximum(done + attention + moving + SCORES[0] * scores + short[0], least)
    again = known["backward_attention"] if practice.fused else 1.0
    backward = 2 * done + 2 * again * attention + known["backward_elementwise"] * moving
    backward = backward + SCORES[1] * scores + short[1]
    if practice.copies:  # matrices are read and written as products take them; their gradients, the way back
        cast = weights * (practice.weights + practice.compute) / bandwidth
        several = (
            choices.microbatches(question.batch) > 1
        )  # then they are added: both are read, one is written
        added = np.where(several, weights * 3 * practice.gradients / bandwidth, 0.0)
        forward, backward = forward + cast, backward + cast + added
    backward = np.maximum(backward, 2 * least)
    counted = Times(forward, backward, np.clip(done / backward, 0.0, 1.0), attention)
    return counted if experts else _measured(question, choices, "layer", counted)


def head(question: Question, choices: Choices, device: DeviceKind) -> Times:
    """The last norm, the head and the loss."""
    spec = question.spec
    if not question.scored:
        return Times(*(np.zeros(len(choices)) for _ in range(4)))
    tokens = question.scored * choices.rows * question.row / choices.cp
    words = spec.vocab_size / choices.tp
    dim = np.full(len(choices), float(spec.dim))
    done = _products(question, device, [(tokens, words, dim)], format=_narrow(question))
    passes = question.practice.logit_passes * tokens * words
    moving = passes / (device.memory_bandwidth * question.coefficients["memory"])
    backward = 2 * done + moving / 2
    counted = Times(done + moving / 2, backward, done / backward, np.zeros(len(choices)))
    return _measured(question, choices, "head", counted)


def embedding(question: Question, choices: Choices, device: DeviceKind) -> Times:
    """Rows of a table: read forward, added up backward."""
    tokens = choices.rows * question.row / choices.cp
    moving = 2 * question.practice.hidden * tokens * question.spec.dim
    moving = moving / (device.memory_bandwidth * question.coefficients["memory"])
    counted = Times(moving, 2 * moving, np.ones(len(choices)), np.zeros(len(choices)))
    return _measured(question, choices, "embedding", counted)


def _measured(question: Question, choices: Choices, part: str, counted: Times) -> Times:
    """What a profile says of a part, else what was counted. A context rank has its share of a row's tokens
    and pairs, so a part of the rows does as much."""
    if question.profile is None:
        return counted
    forward, backward = (
        seconds / question.coefficients["products"]
        for seconds in question.profile.part(part, choices.tp, choices.rows / choices.cp)
    )
    if part == "layer":  # the order of a row's parts costs attention something beyond them
        share = question.coefficients["context"] * (1 - 1 / choices.cp)
        attention = counted.attention / np.maximum(counted.forward, 1e-12) * forward
        forward, backward = forward + share * attention, backward + 2 * share * attention
        return Times(forward, backward, counted.weights, attention)
    return Times(forward, backward, counted.weights, counted.attention)


def update(question: Question, parameters: Floats, device: DeviceKind) -> Floats:
    """Seconds of the optimizer's step over so many parameters: all is read, and all but gradients written.
    Before it gradients are clipped: read for their norm, and read and written to scale them."""
    if question.profile is not None:
        return question.profile.update.at(parameters)
    practice = question.practice
    size = parameters * (2 * practice.state + 2 * practice.gradients)
    moved = size / (device.memory_bandwidth * question.coefficients["memory"])
    if practice.matrices is None:
        return moved
    speed = rate(device, format_on(question, device), np.array([float(question.spec.dim)]))
    return moved + parameters * _newton_schulz(question) / (speed * question.coefficients["products"])


def _newton_schulz(question: Question) -> float:
    """FLOPs a parameter of Muon's update, on average over the model: for a matrix of m x n, m the smaller,
    each iteration has two products of m x m x n and one of m x m x m (torch.optim.Muon)."""
    spec = question.spec
    matrices = [
        (spec.num_heads * spec.head_dim, 2),
        (spec.num_kv_heads * spec.head_dim, 2),
        (spec.ffn_dim, 3),
    ]
    total = 0.0
    for layer in range(spec.num_layers):
        shapes = matrices
        if spec.experts is not None and spec.experts.inside(layer):
            shapes = [*matrices[:2], (spec.experts.ffn_dim, 3 * spec.experts.num_experts)]
        for width, count in shapes:
            m, n = sorted((spec.dim, width))
            total += count * ITERATIONS * (4.0 * m * m * n + 2.0 * m**3)
    return total / spec.num_parameters


def rate(device: DeviceKind, format: str, least: Floats) -> Floats:
    """FLOP/s of products by their smallest dimension. Raises ShunterError for a format it has no rate in."""
    if format not in device.flops:
        formats = ", ".join(device.flops)
        raise ShunterError(
            f"the device has no rate in {format}",
            mend=f"Add it to the cluster's file, or plan for {formats}.",
        )
    rates = np.array([_reached(device, format, name) for name in CLASSES[:4]])
    return rates[np.searchsorted(BOUNDS, least, side="right")]


def _reached(device: DeviceKind, format: str, shape: str) -> float:
    """As described; else as an H100 has it: by the ratio to a class that is known, the nearest larger one or
    the largest of the smaller ones; of a device of which peaks alone are known, by the share of the peak."""
    known = device.flops[format].achieved  # type: ignore[index]
    if shape in known:
        return known[shape]
    order = CLASSES[:4]
    at = order.index("large" if shape == "attention" else shape)
    for name in (*order[at:], *reversed(order[:at]), "attention"):
        if name in known:
            return min(UNMEASURED[shape] / UNMEASURED[name] * known[name], device.peak(format))
    return UNMEASURED[shape] * device.peak(format)


def guessed(question: Question, device: DeviceKind) -> list[str]:
    """Classes of shapes whose rates are no measurement of this kind of device."""
    formats = {name: format_on(question, device) for name in CLASSES}
    if question.practice.products == "fp8" and "bf16" in device.flops:
        formats["attention"] = "bf16"
    return [name for name in CLASSES if not device.known(formats[name], name)]


def format_on(question: Question, device: DeviceKind) -> str:
    """The number format of products: as practised, or the next wider that the device has a rate in."""
    wanted = question.practice.products
    if wanted in device.flops:
        return wanted
    for format in ("bf16", "fp16", "fp32"):
        if format in device.flops:
            return format
    return next(iter(device.flops))


def _narrow(question: Question) -> str:
    """Of the head: products in fp8 leave it in bf16."""
    return "bf16" if question.practice.products == "fp8" else question.practice.products


def _products(
    question: Question,
    device: DeviceKind,
    products: Iterable[Sequence[Floats]],
    format: str | None = None,
) -> Floats:
    format = format or format_on(question, device)
    if format not in device.flops:
        format = format_on(question, device)
    known = question.coefficients
    total: Floats = np.zeros(1)
    for m, n, k in products:
        speed = rate(device, format, np.minimum(np.minimum(m, n), k)) * known["products"]
        size = question.practice.compute * (m * k + k * n + m * n)
        read = size / (device.memory_bandwidth * known["memory"])
        total = total + np.maximum(2 * m * n * k / speed, read)
    return total


def _operands(products: Iterable[Sequence[Floats]]) -> Floats:
    total: Floats = np.zeros(1)
    for m, n, k in products:
        total = total + m * k + k * n
    return total


def _attention_rate(question: Question, device: DeviceKind) -> float:
    format = "bf16" if question.practice.products == "fp8" else format_on(question, device)
    if format not in device.flops:
        format = format_on(question, device)
    known = question.coefficients
    if question.practice.fused:
        return _reached(device, format, "attention") * known["products"] * known["attention"]
    # The narrow side of these products is a head, but what that costs is the scores' way to memory, above.
    narrow = rate(device, format, np.array([float(question.row)]))
    return float(narrow[0]) * known["products"]


def _pairs(question: Question) -> float:
    """Pairs of tokens that a row's attention computes: those that see each other, or all."""
    row, window = question.row, question.spec.sliding_window
    if not question.practice.fused:
        return float(row) ** 2
    window = min(row, window or row)
    return window * row - window * (window - 1) / 2
