"""Bytes that a model takes beside its weights while it writes: what `paged` and `decode` make, counted
beforehand. Imports without torch.
"""

from __future__ import annotations

from shunter.models.spec import DecoderSpec

BLOCK = 8  # tokens of a block of the cache, where nothing else is asked for: texts are short
COPIED = 2 * 2**30  # bytes of a model's weights that are copied: of a larger one memory may be short
FILL_TOKENS = 2048  # of texts that are read in one pass, if there are several
SPARE = 1.25  # of what a layer reads of the cache at once, the memory that is kept for it


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
