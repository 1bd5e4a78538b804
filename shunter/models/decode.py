"""One more token for each row, computed for speed; the same arithmetic as `Decoder.forward`.

A product of a weight [N, K] with a few columns is nearly twice as fast on a CPU as a few rows times
its transpose: the large operand is read as it lies. So activations here are [width, B], and nothing is
copied or packed. A step of a small model is a few hundred small operations: what does not change
between steps is looked up once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.models.adapter import AdaptedLinear
from shunter.models.cache import KVCache, Places
from shunter.models.decoder import Block, Decoder, RMSNorm
from shunter.models.moe import MoE


class _Beside(NamedTuple):
    """A frozen weight with its adapters: down [all ranks, I], and up [O, all ranks], scaled."""

    linear: AdaptedLinear
    down: Tensor
    up: Tensor


_Weight = Tensor | _Beside


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of a block; norms as `_scaled` gives them."""

    attention_norm: Tensor
    qkv: _Weight
    bias: Tensor | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    out: _Weight
    ffn_norm: Tensor
    ffn: tuple[_Weight, _Weight] | MoE  # gate and up, down


class Stepper:
    """Steps of one model without gradients. Its weights must stay in place while this is used."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.spec = model, model.spec
        self.layers = [_look_up(layer) for layer in model.layers if isinstance(layer, Block)]
        self.norm = _scaled(model.norm)
        self.offset = model.spec.norm_eps * model.spec.dim

    def __call__(self, tokens: Tensor, cache: Places) -> Tensor:
        """Logits [B, V] after tokens [B], which follow those in the cache."""
        x = self.model.embed(tokens).t().contiguous()
        cos, sin = (part[:, 0] for part in cache.rope(cache.positions(1), x.dtype))
        # Turned by the angle: x * cos + (the halves of x exchanged) * sin, the first half's sine negated.
        rope = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        mask = cache.mask(1)
        if mask is not None:  # as numbers to add, made once; attention would make them in every layer
            mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
        for number, layer in enumerate(self.layers):
            x = x + self._attend(number, layer, self._normed(x, layer.attention_norm), rope, mask, cache)
            x = x + self._feed(layer, self._normed(x, layer.ffn_norm))
        cache.advance(1)
        return torch.mm(self.model.head_weight, self._normed(x, self.norm)).t().contiguous()

    def _feed(self, layer: _Layer, x: Tensor) -> Tensor:
        if isinstance(layer.ffn, MoE):
            return layer.ffn(x.t().unsqueeze(1), drop=False).squeeze(1).t()
        gate_up, down = layer.ffn
        gate, up = _product(gate_up, x).chunk(2)
        return _product(down, F.silu(gate).mul_(up))

    def _attend(
        self,
        number: int,
        layer: _Layer,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Places,
    ) -> Tensor:
        spec = self.spec
        rows, width = x.shape[1], spec.head_dim
        qkv = _product(layer.qkv, x)
        if layer.bias is not None:
            qkv = qkv + layer.bias
        heads = qkv.t().contiguous().view(rows, -1, width)
        qk, v = heads.split([spec.num_heads + spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = qk.split([spec.num_heads, spec.num_kv_heads], dim=1)
            qk = torch.cat((layer.q_norm(q), layer.k_norm(k)), dim=1)
        qk = torch.addcmul(qk * rope[0], qk.roll(width // 2, dims=-1), rope[1])
        q, k = qk.split([spec.num_heads, spec.num_kv_heads], dim=1)
        # The query heads of a group stand as queries side by side; nothing is repeated.
        y = self._see(number, q.view(rows, spec.num_kv_heads, -1, width), k, v, mask, cache)
        return _product(layer.out, y.reshape(rows, -1).t())

    def _see(
        self, number: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: Places
    ) -> Tensor:
        """Attention [B, K, H / K, d] of q, after the new keys and values [B, K, d] are stored."""
        assert isinstance(cache, KVCache)
        keys, values = cache.store(number, k.unsqueeze(2), v.unsqueeze(2))
        if keys.dtype != q.dtype:
            keys, values = keys.to(q.dtype), values.to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / rms(x) * weight over the first dim, with as few operations as it takes."""
        wide = x if x.dtype == weight.dtype else x.to(weight.dtype)
        # sqrt(dim) is in the weight, so the sum of squares serves for their mean.
        scale = (wide * wide).sum(dim=0).add_(self.offset).rsqrt_()
        normed = (wide * scale).mul_(weight)
        return normed if x.dtype == weight.dtype else normed.to(x.dtype)


def _product(weight: _Weight, x: Tensor) -> Tensor:
    """[N, B] of x [K, B]."""
    if isinstance(weight, Tensor):
        return torch.mm(weight, x)
    y = torch.mm(weight.linear.frozen.weight(x.dtype), x)
    return y.addmm_(weight.up.to(x.dtype), torch.mm(weight.down.to(x.dtype), x)) if len(weight.down) else y


@torch.no_grad()
def _weight(linear: nn.Module) -> _Weight:
    """A Linear's own weight, which stays where it is; of adapters what they are now."""
    if isinstance(linear, AdaptedLinear):
        return _Beside(linear, *linear.both())
    assert isinstance(linear, nn.Linear)
    return linear.weight


def _look_up(layer: Block) -> _Layer:
    attention, ffn = layer.attention, layer.ffn
    bias = attention.qkv.bias
    return _Layer(
        attention_norm=_scaled(layer.attention_norm),
        qkv=_weight(attention.qkv),
        bias=None if bias is None else bias[:, None],
        q_norm=attention.q_norm,
        k_norm=attention.k_norm,
        out=_weight(attention.out),
        ffn_norm=_scaled(layer.ffn_norm),
        ffn=ffn if isinstance(ffn, MoE) else (_weight(ffn.gate_up), _weight(ffn.down)),
    )


def _scaled(norm: RMSNorm) -> Tensor:
    """[D, 1]: the weight times sqrt(D), in float32 at least."""
    weight = norm.weight
    return (weight.to(torch.promote_types(weight.dtype, torch.float32)) * len(weight) ** 0.5)[:, None]
