"""One more token for each row, computed for speed; the same arithmetic as `Decoder.forward`.

A step of a small model is a few hundred small operations: what does not change between steps is looked up
once, and what follows a product is done with it where that can be (`shunter.models.weights`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.models.cache import KVCache, Places
from shunter.models.decoder import Block, Decoder, RMSNorm
from shunter.models.footprint import COPIED
from shunter.models.moe import MoE
from shunter.models.weights import Gated, Plain, PlainGate, Rounded, Weight, gated, head, linear, ordered


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of a block; norms as `_scaled` gives them."""

    attention_norm: Tensor
    qkv: Weight
    heads_norm: Tensor | None  # [H + K, d]: of queries, then of keys
    out: Weight
    ffn_norm: Tensor
    ffn: tuple[Gated, Weight] | MoE  # gate and up, down

    def renew(self, block: Block) -> None:
        """Read what is copied anew."""
        self.attention_norm.copy_(_scaled(block.attention_norm))
        self.ffn_norm.copy_(_scaled(block.ffn_norm))
        norms = _heads_norm(block)
        if self.heads_norm is not None and norms is not None:
            self.heads_norm.copy_(norms)
        assert not isinstance(self.ffn, MoE)
        gate, down = self.ffn
        assert isinstance(gate, PlainGate)
        for each in (self.qkv, self.out, gate.both, down):
            if isinstance(each, Rounded):
                each.renew()


class Stepper:
    """Steps of one model without gradients, each row [D] a token. Its weights must stay as they are while
    this is used, or be read anew (`renew`). copy: they may be copied into an order in which they are faster
    for several rows. rounded: the precision of products, with copies of the weights in it, where the weights
    are in a wider one: what autocast computes, but that it rounds each weight at each use."""

    def __init__(self, model: Decoder, copy: bool = False, rounded: torch.dtype | None = None) -> None:
        self.model, self.spec = model, model.spec
        weight = model.head_weight
        self.dtype = rounded or weight.dtype  # of products, so of queries, keys, values and logits
        copy = copy and rounded is None
        # By size alone, not by what memory is free: a run that is resumed computes the same bits.
        copy = copy and ordered(weight) and model.spec.num_parameters * weight.itemsize <= COPIED
        self.copies = copy
        self.blocks = [layer for layer in model.layers if isinstance(layer, Block)]
        self.layers = [_look_up(layer, copy, rounded) for layer in self.blocks]
        self.norm, self.head = _scaled(model.norm), head(weight, copy, rounded)
        self._places = self._where()

    def __call__(self, tokens: Tensor, cache: Places) -> Tensor:
        """Logits [B, V] after tokens [B], which follow those in the cache."""
        return self.logits(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: Places) -> Tensor:
        """[B, D] before the last norm."""
        x = self.model.embed(tokens)
        cos, sin = (part[:, 0].to(self.dtype) for part in cache.rope(cache.positions(1), x.dtype))
        # Turned by the angle: x * cos + (the halves of x exchanged) * sin, the first half's sine negated.
        rope = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        mask = cache.mask(1)
        if mask is not None:  # as numbers to add, made once; attention would make them in every layer
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
        for number, layer in enumerate(self.layers):
            y = self._attend(number, layer, self._normed(x, layer.attention_norm), rope, mask, cache)
            x = layer.out.added(y, x)
            x = self._feed(layer, self._normed(x, layer.ffn_norm), x)
        cache.advance(1)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[B, V] of [B, D] before the last norm."""
        return self.head(self._normed(x, self.norm))

    @property
    def fixed(self) -> bool:
        """Whether all that a step reads stays where it is, and a step waits for nothing."""
        return self._places is not None

    @torch.inference_mode()
    def renew(self) -> bool:
        """Read the weights anew, which have changed. False where they lie elsewhere now, or where copies of
        them were made in another order: then this can no longer be used."""
        if self._places is None or self._places != self._where():
            return False
        self.norm.copy_(_scaled(self.model.norm))
        if isinstance(self.head, Rounded):
            self.head.renew()
        for layer, block in zip(self.layers, self.blocks, strict=True):
            layer.renew(block)
        return True

    def _where(self) -> list[int] | None:
        """Where each weight lies; None if other things than weights as they lie are read, or rounded ones."""
        products = [self.head]
        for layer in self.layers:
            if isinstance(layer.ffn, MoE) or not isinstance(layer.ffn[0], PlainGate):
                return None
            products += [layer.qkv, layer.out, layer.ffn[0].both, layer.ffn[1]]
        if not all(isinstance(each, Plain | Rounded) for each in products):
            return None
        return [parameter.data_ptr() for parameter in self.model.parameters()]

    def _feed(self, layer: _Layer, x: Tensor, to: Tensor) -> Tensor:
        if isinstance(layer.ffn, MoE):
            return to + layer.ffn(x.unsqueeze(1), drop=False).squeeze(1)
        gate_up, down = layer.ffn
        return down.added(gate_up(x), to)

    def _attend(
        self,
        number: int,
        layer: _Layer,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Places,
    ) -> Tensor:
        """[B, H d] from normed x [B, D]."""
        spec = self.spec
        heads = layer.qkv(x).view(len(x), -1, spec.head_dim)
        qk = heads.narrow(1, 0, spec.num_heads + spec.num_kv_heads)
        turned = qk if layer.heads_norm is None else self._normed(qk, layer.heads_norm)
        # In place, so that keys and values still lie side by side.
        torch.addcmul(turned * rope[0], turned.roll(spec.head_dim // 2, dims=-1), rope[1], out=qk)
        return self._see(number, heads, mask, cache)

    def _see(self, number: int, heads: Tensor, mask: Tensor | None, cache: Places) -> Tensor:
        """Attention [B, H d] of queries, keys and values [B, H + 2 K, d]; the latter two are stored first."""
        assert isinstance(cache, KVCache)
        spec, rows = self.spec, len(heads)
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        keys, values = cache.store(number, k.unsqueeze(2), v.unsqueeze(2))
        if keys.dtype != q.dtype:
            keys, values = keys.to(q.dtype), values.to(q.dtype)
        # The query heads of a group stand as queries side by side; nothing is repeated.
        q = q.reshape(rows, spec.num_kv_heads, -1, spec.head_dim)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).reshape(rows, -1)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / rms(x) * weight, with as few operations as it takes."""
        if x.is_cuda:  # has one for it
            rounded = weight.to(x.dtype)
            if weight.ndim == 1:
                return F.rms_norm(x, x.shape[-1:], rounded, self.spec.norm_eps)
            exact = x.to(torch.promote_types(x.dtype, torch.float32))  # rounded once, as by one kernel
            return (F.rms_norm(exact, x.shape[-1:], None, self.spec.norm_eps) * rounded).to(x.dtype)
        wide = x if x.dtype == weight.dtype else x.to(weight.dtype)
        # sqrt(dim) is in the weight, so the sum of squares serves for their mean.
        offset = self.spec.norm_eps * x.shape[-1]
        scale = (wide * wide).sum(dim=-1, keepdim=True).add_(offset).rsqrt_()
        normed = (wide * scale).mul_(weight)
        return normed if x.dtype == weight.dtype else normed.to(x.dtype)


def _look_up(layer: Block, copy: bool, rounded: torch.dtype | None) -> _Layer:
    attention, ffn = layer.attention, layer.ffn
    return _Layer(
        attention_norm=_scaled(layer.attention_norm),
        qkv=linear(attention.qkv, copy, rounded),
        heads_norm=_heads_norm(layer),
        out=linear(attention.out, copy, rounded),
        ffn_norm=_scaled(layer.ffn_norm),
        ffn=ffn
        if isinstance(ffn, MoE)
        else (gated(ffn.gate_up, copy, rounded), linear(ffn.down, copy, rounded)),
    )


def _heads_norm(layer: Block) -> Tensor | None:
    attention = layer.attention
    norms = (attention.q_norm, attention.num_heads), (attention.k_norm, attention.num_kv_heads)
    each = [_scaled(norm).expand(count, -1) for norm, count in norms if norm is not None]
    return torch.cat(each) if each else None


def _scaled(norm: RMSNorm) -> Tensor:
    """[D]: the weight as `_normed` takes it. For a CPU times sqrt(D), in float32 at least."""
    weight = norm.weight
    if weight.is_cuda:
        return weight.detach().clone()
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32)) * len(weight) ** 0.5
