"""Bytes that a process of `rl` holds, phase by phase, as the planner's cost model and the engine's own count
have them.

Of learning the widest micro-batch counts, not the mean one. What writes with the model that learns keeps its
cache while that learns; under a layout a whole model takes the place of the part that learns, and is given up
with its cache. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shunter.models.footprint import ffn_width, layer_token, shared_numbers
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import Question
from shunter.plan.score import Prediction
from shunter.plan.writing import Texts, Writes, held

# Of scores, bytes of logits at a time, and arrays of them in the backward pass (`shunter.models.scores`).
CHUNK, GPU_CHUNK, ARRAYS = 1 << 23, 1 << 28, 4


@dataclass(frozen=True)
class Held:
    """What one process, or a rank, has beside learning.

    texts: that it writes; None: another process writes. whole: it writes with a copy of the model that takes
    the place of its part. engine_stays: cache and copy of weights are there while it learns. reference: it
    holds the first model. moments: of the weights, that are kept beside. targets: of the widest micro-batch;
    shared: how many answers share a row with their prompt, and the prompt's tokens; None: each has its own.
    """

    writes: Writes
    texts: Texts | None
    targets: int
    shared: tuple[int, float] | None = None
    whole: bool = False
    engine_stays: bool = True
    reference: bool = False
    moments: int = 0


def of_phases(
    question: Question, policy: Prediction, critic: Prediction | None, it: Held
) -> dict[str, float]:
    """Bytes of tensors by phase, on the fullest rank. policy, critic: of the widest micro-batch."""
    spec, element = question.spec, it.writes.element
    model = spec.num_parameters * element
    found: dict[str, float] = {}
    for number, parts in enumerate(policy.bytes):
        state = parts["weights"] + parts["optimizer"]
        always = it.moments * model + (parts["weights"] if it.reference else 0.0)
        beside = {} if critic is None else critic.bytes[number]
        theirs = sum(beside.get(name, 0.0) for name in ("weights", "optimizer"))
        engine = {} if it.texts is None else held(spec, it.texts, it.writes)
        staying = engine.get("cache", 0.0) if it.engine_stays else 0.0
        copied = engine.get("copy", 0.0) if it.engine_stays else 0.0
        scores, sharing = _scores(question, it.targets), _sharing(question, policy, it)
        kept = _kept(question, policy, sharing)
        learning = _learning(parts, scores) + kept + theirs + copied
        if critic is not None:  # which learns when the copy is out of date
            learning = max(learning, _learning(beside, 0.0) + kept + state)
        phases = {
            "preparation": state + theirs + copied + sharing + _forward(question, policy, scores),
            "learning": learning,
        }
        phases = {name: size + always + staying for name, size in phases.items()}
        if engine:
            writer = model + parts["optimizer"] if it.whole else state
            phases["writing"] = writer + theirs + always + sum(engine.values())
        found = {name: max(size, found.get(name, 0.0)) for name, size in phases.items()}
    return found


def beside(spec: DecoderSpec, texts: Texts, writes: Writes) -> float:
    """Bytes of tensors of a process that writes alone: its model, newer weights as they come, and what it
    takes to write."""
    return 2 * spec.num_parameters * writes.element + sum(held(spec, texts, writes).values())


def _learning(parts: Mapping[str, float], scores: float) -> float:
    """With the head's scores, which are there when no layer's backward runs yet."""
    tensors = sum(size for name, size in parts.items() if name != "other")
    return tensors + max(0.0, scores - parts["passing"])


def _scores(question: Question, targets: int) -> float:
    chunk = CHUNK if question.fabric.device.type == "cpu" else GPU_CHUNK
    return ARRAYS * min(float(chunk), 4.0 * targets * question.spec.vocab_size)


def _tokens(question: Question, policy: Prediction) -> float:
    """Of a micro-batch on a rank."""
    return float(policy.choice.rows[0]) * question.row / float(policy.choice.cp[0] * policy.choice.tp[0])


def _sharing(question: Question, policy: Prediction, it: Held) -> float:
    """Of a layer's attention, where answers see one prompt."""
    if it.shared is None:
        return 0.0
    answers, prompt = it.shared
    device = question.fabric.device.type
    each = shared_numbers(question.spec, question.row, prompt, answers, device)
    return float(policy.choice.rows[0]) * each * question.practice.compute


def _kept(question: Question, policy: Prediction, sharing: float) -> float:
    """For the backward pass, beyond what the cost model counts of plain rows: what it takes each layer that
    answers share a prompt, and what the norms of queries and keys were given, with which the whole product
    stays."""
    spec, choice = question.spec, policy.choice
    if choice.recompute[0]:
        return sharing
    each = sharing
    if spec.qk_norm:
        numbers = spec.num_heads * spec.head_dim + layer_token(spec)
        each += _tokens(question, policy) * numbers * question.practice.compute
    stages = int(choice.pp[0])
    return each * spec.num_layers / stages * min(stages, policy.microbatches)


def _forward(question: Question, policy: Prediction, scores: float) -> float:
    """Of a pass without gradients: what is alive at once of a layer, and the hidden states around it."""
    spec, practice = question.spec, question.practice
    inside = max(3 * spec.num_heads * spec.head_dim + 2 * layer_token(spec), 4 * ffn_width(spec))
    each = practice.hidden * 3 * spec.dim + practice.compute * inside
    return max(_tokens(question, policy) * each, scores / 2)
