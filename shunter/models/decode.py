"""One more token for each row, computed for speed; the same arithmetic as `Decoder.forward`.

A product of a weight [N, K] with a few columns is nearly twice as fast on a CPU as a few rows times
its transpose: the large operand is read as it lies. So activations [B, N] here have strides (1, B): each
product leaves them so, elementwise work keeps them so, and nothing is copied or packed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.models.cache import KVCache
from shunter.models.decoder import Attention, Block, Decoder, RMSNorm


def decode(model: Decoder, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits [B, V] after tokens [B], which follow those in the cache. Without gradients."""
    x = model.embed(tokens).t().contiguous().t()
    cos, sin = (part[:, 0] for part in cache.rope(cache.positions(1), x.dtype))
    # Turned by the angle: x * cos + (the halves of x exchanged) * sin, the first half's sine negated.
    rope = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    mask = cache.mask(1)
    if mask is not None:  # as numbers to add, made once; attention would make them in every layer
        mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
    for layer in model.layers:
        assert isinstance(layer, Block)
        x = x + _attend(layer.attention, _norm(layer.attention_norm, x), rope, mask, cache)
        gate, up = _project(layer.ffn.gate_up.weight, _norm(layer.ffn_norm, x)).chunk(2, dim=1)
        x = x + _project(layer.ffn.down.weight, F.silu(gate) * up)
    cache.advance(1)
    return _project(model.head_weight, _norm(model.norm, x)).contiguous()


def _attend(
    part: Attention, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache
) -> Tensor:
    spec = part.spec
    rows, width = x.shape[0], spec.head_dim
    qkv = _project(part.qkv.weight, x)
    if part.qkv.bias is not None:
        qkv = qkv + part.qkv.bias
    heads = qkv.contiguous().view(rows, -1, width)
    v = heads[:, spec.num_heads + spec.num_kv_heads :]
    if part.q_norm is not None and part.k_norm is not None:
        q, k = heads[:, : spec.num_heads], heads[:, spec.num_heads : -spec.num_kv_heads]
        qk = torch.cat((part.q_norm(q), part.k_norm(k)), dim=1)
    else:
        qk = heads[:, : -spec.num_kv_heads]
    cos, sin = rope
    qk = torch.addcmul(qk * cos, qk.roll(width // 2, dims=-1), sin)
    keys, values = cache.store(part.layer, qk[:, spec.num_heads :, None], v[:, :, None])
    # The query heads of a group stand as queries side by side; nothing is repeated.
    q = qk[:, : spec.num_heads].reshape(rows, spec.num_kv_heads, -1, width)
    y = F.scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype), attn_mask=mask)
    return _project(part.out.weight, y.reshape(rows, -1))


def _project(weight: Tensor, x: Tensor) -> Tensor:
    return torch.mm(weight, x.t()).t()


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """As `RMSNorm`, at half the cost for few rows."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide * wide).sum(dim=1, keepdim=True).mul_(1 / x.shape[1]).add_(norm.eps).rsqrt_()
    return (wide * scale).to(x.dtype) * norm.weight.to(x.dtype)
