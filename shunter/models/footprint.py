"""Bytes that a model takes beside its weights while it writes: what `paged` and `decode` make, counted
beforehand. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from shunter.models.spec import DecoderSpec

BLOCK = 8  # tokens of a block of the cache, where nothing else is asked for: texts are short
COPIED = 2 * 2**30  # bytes of a model's weights that are copied: of a larger one memory may be short
FILL_TOKENS = 2048  # of texts that are read in one pass, if there are several
# What it costs to put a token behind another, forward and backward, in scores of a query and a key. On one
# core, with 15 shapes of 4 to 8 heads of 32 and 64: right of each, or within a fifth where it is wrong.
BEHIND = 80
SPARE = 1.25  # of what a layer reads of the cache at once, the memory that is kept for it
# Bytes of a copy that a CPU's caches still hold when they are attended to. On 2 cores with 1 MiB of second
# level cache each, 2 MiB at a time took 0.5 to 0.8 of the time of 6 to 50 MiB at once; 1/4 MiB took twice it.
AT_ONCE = {"cpu": 2 << 20}


def cache_tokens(batch: int, room: int, block: int = BLOCK, most: int = 0) -> int:
    """Tokens of the cache of who writes `batch` texts side by side, of `room` tokens at most: room for all of
    them, or `most`; never less than for one."""
    whole = batch * (room + block)
    return max(min(whole, most), room + block) if most else whole


def cache_bytes(spec: DecoderSpec, tokens: int, block: int, element: float) -> float:
    """Of keys and values of all layers, in whole blocks."""
    return -(-tokens // block) * block * layer_token(spec) * spec.num_layers * element


def layer_token(spec: DecoderSpec) -> int:
    """Numbers of a token's key and value in a layer."""
    return 2 * spec.num_kv_heads * spec.head_dim


def ffn_width(spec: DecoderSpec) -> int:
    """Inner numbers of a token's feed-forward in a layer: of experts, of all that it goes to."""
    experts = spec.experts
    return spec.ffn_dim if experts is None else experts.per_token * experts.ffn_dim + experts.shared_ffn_dim


def copied_bytes(spec: DecoderSpec, element: float) -> float:
    """Of the copy in another order with which a CPU writes in float32 (`shunter.models.weights`): of dense
    products and the head; 0 for a model of which there is none."""
    if spec.num_parameters * element > COPIED:
        return 0.0
    attention = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim * spec.dim
    experts = spec.experts
    dense = sum(experts is None or not experts.inside(layer) for layer in range(spec.num_layers))
    layers = spec.num_layers * attention + dense * 3 * spec.dim * spec.ffn_dim
    return (layers + spec.vocab_size * spec.dim) * element


def copies_prompts(device: str) -> bool:
    """Whether a device of this type may put answers behind copies of their prompt. On an H100 a mask of a row
    of 2,180 tokens, 8 answers of 256 among them, took 0.38 of a whole step's time with copies."""
    return device == "cpu"


def forked_scores(length: float, prompt: float, answers: Sequence[tuple[float, float]]) -> float | None:
    """What it costs a row of `length` tokens to put its answers (so many, of so many tokens) behind copies
    of their prompt, in scores of a query and a key; None where a mask of the row costs less."""
    found = prompt * prompt + sum(count * (prompt + size) * (size + BEHIND) for count, size in answers)
    return found if found < length * length else None


def shared_numbers(
    spec: DecoderSpec, length: float, prompt: float, answers: int, device: str = "cpu"
) -> float:
    """Numbers that attention of a layer keeps for a row's backward pass beyond those of plain rows, where so
    many answers share the prompt: copies of its keys and values and what each part gives, or a mask."""
    width = spec.num_heads * spec.head_dim
    each = (length - prompt) / answers
    if not copies_prompts(device) or forked_scores(length, prompt, [(answers, each)]) is None:
        return length * length
    return (2 * answers * prompt + length) * width
