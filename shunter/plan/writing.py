"""What it takes to write answers with the engine of `shunter.generate.rollout`, counted from what that does.

`at_once` answers stand side by side, each with its own keys and values in blocks; a prompt is read once for
all answers to it; who has ended makes room for the next one. Bytes are those of tensors (`held`); seconds are
bounds, of memory and of products, which a small model's many calls exceed. Imports without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from shunter.cluster.device import DeviceKind
from shunter.models.footprint import (
    AT_ONCE,
    BLOCK,
    FILL_TOKENS,
    SPARE,
    cache_bytes,
    cache_tokens,
    copied_bytes,
    ffn_width,
    layer_token,
)
from shunter.models.spec import DecoderSpec

MOVED = {"cpu": 3}  # times that keys and values are moved: read, put side by side, and read again
DRAWN = 28  # bytes a row and word of the vocabulary with which a token is chosen (`generate.sampling`)
REACHED = 0.5  # share of the described rate that products of few rows reach, assumed


@dataclass(frozen=True)
class Texts:
    """What one process writes in a step. prompts: that are read. prompt, answer: tokens in the mean. longest:
    tokens of the longest answer. room: of the longest text that may come."""

    answers: int
    prompts: float
    prompt: float
    answer: float
    longest: float
    room: int


@dataclass(frozen=True)
class Writes:
    """at_once, block, cache: as of `rl`. element: bytes of a weight, and of a key's number. copies: whether
    products have copies of the weights in an order of their own, as on a CPU in float32. anew: weights change
    in the midst of answers, which are then read anew. device: type of the one that writes. rounded: it
    computes in half precision with weights in a wider one, of which it has copies."""

    at_once: int
    block: int = BLOCK
    cache: int = 0
    element: float = 4
    copies: bool = True
    anew: bool = False
    device: str = "cpu"
    rounded: bool = False

    @property
    def computed(self) -> float:
        """Bytes of a key's number, and of what is passed on."""
        return 2 if self.rounded else self.element

    def side(self, texts: Texts) -> int:
        """Answers side by side, where the cache has room for them."""
        return max(1, min(self.at_once, texts.answers))

    def tokens(self, texts: Texts) -> int:
        """Of the cache."""
        return cache_tokens(self.side(texts), texts.room, self.block, self.cache)

    def running(self, texts: Texts) -> float:
        """Answers side by side in the mean, while there are enough. An answer that grows holds half of its
        tokens in the mean."""
        each = texts.prompt + texts.answer / 2 + self.block / 2
        return max(1.0, min(float(self.side(texts)), self.tokens(texts) / each))


def held(spec: DecoderSpec, texts: Texts, writes: Writes) -> dict[str, float]:
    """Bytes beside the weights. cache: keys, values, and where a layer's are put side by side. copy: of the
    weights. passing: of one pass, the widest."""
    side, size = writes.side(texts), writes.computed
    # All rows are read as long as the longest, if they differ little, some at a time; a GPU copies nothing.
    row = (texts.prompt + texts.longest + writes.block) * layer_token(spec) * size
    part = AT_ONCE.get(writes.device)
    read = 0.0 if part is None else SPARE * min(writes.running(texts) * row, max(part, row))
    heads, keys = spec.num_heads * spec.head_dim, layer_token(spec)
    # Of a token: as it came, its norm, what is attended with (turned, and halves exchanged); or gate and up.
    inside = max(4 * heads + 2 * keys, 3 * ffn_width(spec))
    token = 3 * spec.dim * writes.element + inside * size
    group = max(1.0, texts.answers / max(texts.prompts, 1.0))
    at_once = min(texts.prompts, -(-side // group)) * texts.prompt
    if writes.anew or writes.tokens(texts) < side * texts.room:  # texts are read with what is written of them
        at_once = min(float(writes.tokens(texts)), writes.running(texts) * (texts.prompt + texts.longest))
    passed = side + min(at_once, max(FILL_TOKENS, texts.prompt))
    chosen = spec.vocab_size * DRAWN + spec.dim * size
    # A GPU's recorded steps keep what they pass through; they are of sizes up to a third larger.
    kept = 0.0
    if writes.device != "cpu" and spec.experts is None:
        kept = side * 4 / 3 * max(float(token), chosen)
    return {
        "cache": cache_bytes(spec, writes.tokens(texts), writes.block, size) + read + kept,
        "copy": copied_bytes(spec, size) if writes.copies else _rounded(spec, writes),
        "passing": max(float(passed * token), float(side * chosen)),
    }


def _rounded(spec: DecoderSpec, writes: Writes) -> float:
    """Bytes of the copies in half precision: of products and the head, so of all but norms and an embedding
    that is not the head's too."""
    if not writes.rounded:
        return 0.0
    embedding = 0 if spec.tied else spec.vocab_size * spec.dim
    return writes.computed * (spec.num_parameters - embedding)


def seconds(
    spec: DecoderSpec, texts: Texts, writes: Writes, device: DeviceKind, memory: float = 1.0
) -> float:
    """Of a step's answers. memory: share of the described bandwidth that is reached."""
    running, size = writes.running(texts), writes.computed
    passes = max(texts.longest, texts.answers * texts.answer / running)
    bandwidth = device.memory_bandwidth * memory
    rate = REACHED * _rate(device, size)
    weights = spec.active_parameters
    if spec.experts is not None:  # rows have different ones
        weights = spec.num_parameters
    keys = layer_token(spec) * spec.num_layers * size
    rows = min(running, texts.answers * texts.answer / passes)
    read = weights * size + MOVED.get(writes.device, 1) * rows * (texts.prompt + texts.answer / 2) * keys
    multiplied = 2.0 * spec.active_parameters
    token = max(read / bandwidth, rows * multiplied / rate)
    return passes * token + texts.prompts * texts.prompt * multiplied / rate


def _rate(device: DeviceKind, size: float) -> float:
    """Products of numbers of this size a second; of whatever is described where that is not."""
    rates = {name: each.peak for name, each in device.flops.items()}
    return rates.get("fp32" if size == 4 else "bf16") or max(rates.values())
