"""The decoder: arithmetic only. Shapes: B rows, T tokens, D width, H heads, K key/value heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.models.cache import Cache
from shunter.models.dropout import ATTENTION, EMBED, FFN, HEADS
from shunter.models.forks import forked_attention
from shunter.models.moe import MoE
from shunter.models.norm import rms_norm
from shunter.models.rope import rotate, tables
from shunter.models.segments import (
    SegmentPlan,
    edged_attention,
    segment_attention,
    takes_edges,
    window_mask,
)
from shunter.models.spec import DecoderSpec
from shunter.models.swiglu import SwiGLU


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467), the mean taken in float32 at least."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class CausalAttention(nn.Module):
    """Who sees whom, without weights: what is computed between the projections.

    A place of its own so that rows can be spread over processes by putting another module here.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, segments: SegmentPlan | None, mask: Tensor | None
    ) -> Tensor:
        """[B, H, T, d] from q [B, H, T, d] and k, v [B, K, S, d], where K divides H."""
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if segments is not None and segments.edges is not None and takes_edges(v, segments):
            return edged_attention(q, k, v, segments.edges, self.window)
        if segments is not None and segments.forks is not None:
            return forked_attention(q, k, v, segments.forks)
        if mask is None and segments is not None and segments.shapes:
            return segment_attention(q, k, v, segments, self.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), the three projections fused into one product.

    num_heads, num_kv_heads: those whose weights are here; first: number of the first of the queries'.
    """

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = spec, layer
        self.num_heads, self.num_kv_heads, self.first = spec.num_heads, spec.num_kv_heads, 0
        heads = spec.num_heads + 2 * spec.num_kv_heads
        self.qkv = nn.Linear(spec.dim, heads * spec.head_dim, bias=spec.qkv_bias)
        self.out = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.core: nn.Module = CausalAttention(spec.sliding_window)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        segments: SegmentPlan | None,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.qkv(x).view(rows, length, -1, self.spec.head_dim)
        q, k, v = qkv.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        cos, sin = (part.to(q.dtype) for part in rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.store(self.layer, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
            if length == 1:
                # One query a row: the heads of a group stand as queries side by side, nothing is repeated.
                q = q.view(rows, self.num_kv_heads, -1, self.spec.head_dim)
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                return self.out(y.reshape(rows, 1, -1))
        elif self.num_heads == self.num_kv_heads:
            # A view would keep the whole fused product for the backward pass.
            v = v.contiguous()
        y = self.core(q, k, v, segments, mask).transpose(1, 2).reshape(rows, length, -1)
        if segments is not None and segments.masks is not None:
            y = segments.masks.inside(y, self.layer, HEADS, self.first * self.spec.head_dim)
        return self.out(y)


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); the latter a SwiGLU, or a mixture of them."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.attention = Attention(spec, layer)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.ffn: SwiGLU | MoE
        if spec.experts is not None and spec.experts.inside(layer):
            self.ffn = MoE(spec.dim, spec.experts)
        else:
            self.ffn = SwiGLU(spec.dim, spec.ffn_dim)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        segments: SegmentPlan | None,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        masks = None if segments is None else segments.masks
        y = self.attention(self.attention_norm(x), rope, segments, mask, cache)
        x = x + (y if masks is None else masks.outside(y, self.layer, ATTENTION))
        h = self.ffn_norm(x)
        if isinstance(self.ffn, MoE):
            real = None if segments is None else segments.real
            y = self.ffn(h, real, drop=cache is None)
        else:
            y = self.ffn(h, masks, self.layer)
        return x + (y if masks is None else masks.outside(y, self.layer, FFN))


def embedded(x: Tensor, segments: SegmentPlan | None) -> Tensor:
    """Embeddings x [B, T, D] as they enter the first layer."""
    if segments is None or segments.masks is None:
        return x
    return segments.masks.outside(x, -1, EMBED)


def _table(rows: int, dim: int) -> nn.Embedding:
    """An embedding; where it has no memory, nothing is drawn: that alone would load torch's compiler."""
    if torch.empty(0).is_meta:
        return nn.Embedding.from_pretrained(torch.empty(rows, dim), freeze=False)
    return nn.Embedding(rows, dim)


class Decoder(nn.Module):
    """A stack of blocks between an embedding and a head."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = _table(spec.vocab_size, spec.dim)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(spec.num_layers))
        self.norm = RMSNorm(spec.dim, spec.norm_eps)
        self.head = None if spec.tied else nn.Linear(spec.dim, spec.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the embedding itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: SegmentPlan | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after the last norm, for tokens [B, T].

        positions [B, T] default to 0..T-1. With `segments`, documents in a row do not see each other.
        With `cache`, tokens follow those stored there, which they see; positions are the cache's.
        """
        if cache is not None:
            positions = cache.positions(tokens.shape[1])
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = embedded(self.embed(tokens), segments)
        if cache is not None:
            rope, mask = cache.rope(positions, x.dtype), cache.mask(tokens.shape[1])
        else:
            rope, mask = self.geometry(positions, segments, x.dtype)
        for layer in self.layers:
            x = layer(x, rope, segments, mask, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x)

    def geometry(
        self, positions: Tensor, segments: SegmentPlan | None, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """What all layers share for positions [B, T]: rotations (cos, sin), and who sees whom."""
        length = positions.shape[1]
        # The largest matters to dynamic scaling alone; asking for it would wait for the device.
        dynamic = self.spec.rope.scaling == "dynamic"
        rope = tables(self.spec, positions, dtype, int(positions.max()) + 1 if dynamic else length)
        if segments is not None and segments.whole is not None:
            return rope, None
        mask = None if segments is None else segments.mask
        if self.spec.sliding_window is not None and segments is not None and segments.forks is not None:
            raise ValueError("answers that share a prompt are not attended to within a window")
        if self.spec.sliding_window is not None and (segments is None or not segments.shapes):
            window = window_mask(length, self.spec.sliding_window, positions.device)
            mask = window if mask is None or window is None else mask & window
        return rope, mask

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] from hidden states [..., D]."""
        return F.linear(hidden, self.head_weight)
