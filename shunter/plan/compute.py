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
KERNELS = 14  # of a layer's forward, about
# Shares of the peak that an H100 reaches by class of shape (shunter/cluster/machines/8xh100.yaml).
UNMEASURED = {"tiny": 0.25, "small": 0.45, "medium": 0.65, "large": 0.72, "attention": 0.61}


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
    if experts:
        each = _products(question, device, [(passing, 2 * width, dim), (passing, dim, width)])
        done = done + every * each
    seen = _pairs(question) * choices.rows / choices.cp
    attention = 4 * out * seen / _attention_rate(question, device)
    attention = attention * (1 + known["context"] * (1 - 1 / choices.cp))
    move = practice.elementwise
    wide = own if practice.sequence else tokens
    elements = move.width * wide * spec.dim + move.inside * moved + move.heads * tokens * turned
    size = practice.compute * elements + practice.casts * _operands(products)
    if not practice.fused:  # scores: written, scaled and masked, softmax, dropout, read
        size = size + 11 * heads * seen
    bandwidth = device.memory_bandwidth * known["memory"]
    moving = size / bandwidth
    least = KERNELS * known["kernel"]
    forward = np.maximum(done + attention + moving, least)
    again = known["backward_attention"] if practice.fused else 1.0
    backward = 2 * done + 2 * again * attention + known["backward_elementwise"] * moving
    backward = np.maximum(backward, 2 * least)
    counted = Times(forward, backward, np.clip(done / backward, 0.0, 1.0), attention)
    return counted if experts else _measured(question, choices, "layer", counted)


def head(question: Question, choices: Choices, device: DeviceKind) -> Times:
    """The last norm, the head and the loss."""
    spec = question.spec
    tokens = choices.rows * question.row / choices.cp
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
    """Seconds of the optimizer's step over so many parameters: all is read, and all but gradients written."""
    if question.profile is not None:
        return question.profile.update.at(parameters)
    practice = question.practice
    size = parameters * (2 * practice.state - practice.gradients)
    return size / (device.memory_bandwidth * question.coefficients["memory"])


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
    """As described; of a device of which peaks alone are known, the share that an H100 reaches."""
    if device.flops[format].achieved:  # type: ignore[index]
        return device.rate(format, shape)
    return UNMEASURED[shape] * device.peak(format)


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
    return (
        _reached(device, format, "tiny") * known["products"]
    )  # the width of a head is the smallest dimension


def _pairs(question: Question) -> float:
    """Pairs of tokens that a row's attention computes: those that see each other, or all."""
    row, window = question.row, question.spec.sliding_window
    if not question.practice.fused:
        return float(row) ** 2
    window = min(row, window or row)
    return window * row - window * (window - 1) / 2
