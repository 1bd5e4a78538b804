"""Dropout whose masks are functions of what they belong to, not of who draws them.

A mask is made of (stream, step, row of the step, place in the row, layer, operation, feature): the same on
every layout, in any cut into micro-batches, and when a layer is computed again. So ranks that hold the same
tokens drop the same (outside of tensor-parallel regions) and ranks that hold other features of them drop
others (inside), without the two kinds of generator that arXiv 1909.08053 (section 3) keeps and restores.

The numbers are hashes in 32 bits, on integers alone, so each device has the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shunter.models.uncompiled import uncompiled

# Operations of a layer that drop; the embedding's is that of layer -1.
EMBED, ATTENTION, FFN, HEADS, HIDDEN = range(5)

_STEP, _FEATURE, _PLACE = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35  # odd, with bits all over
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B  # "lowbias32" of C. Wellons' search for integer hashes


@dataclass(frozen=True)
class Masks:
    """What is dropped of one micro-batch.

    residual: share of what the embedding, each attention and each feed-forward add to the residual stream.
    inner:    share of what enters the second product of each attention and feed-forward.
    keys:     int32 [2, B, T] of the tokens here; own: of those of them that this rank has between products,
              the same ones unless tensor ranks share them out.
    """

    residual: float
    inner: float
    keys: Tensor
    own: Tensor

    def outside(self, x: Tensor, layer: int, operation: int) -> Tensor:
        """x [B, t, D] of own tokens, some of it zero and the rest scaled up."""
        return dropped(x, self.own, self.residual, layer, operation)

    def inside(self, x: Tensor, layer: int, operation: int, first: int) -> Tensor:
        """x [B, T, F], whose features begin with number `first` of the whole."""
        return dropped(x, self.keys, self.inner, layer, operation, first)


def token_keys(rows: Tensor, places: Tensor) -> Tensor:
    """int32 [2, B, T], from a number of each row, int64 [B], and the place in its row of each token [T]."""
    halves = torch.stack([rows, rows >> 32])[:, :, None]
    here = _mixed(_wrapped(places * _PLACE)[None, None] ^ _wrapped(halves))
    return torch.stack([here[0], _mixed(here[1] ^ _signed(_STEP))])


@uncompiled  # on CPUs the code that torch 2.13 makes of a shift does not compile
def dropped(x: Tensor, keys: Tensor, share: float, layer: int, operation: int, first: int = 0) -> Tensor:
    """x [B, T, F] with `share` of it zero, and the rest divided by 1 - share; keys int32 [2, B, T]."""
    if not share:
        return x
    found: Tensor = _Drop.apply(x, kept(keys, share, layer, operation, first, x.shape[-1]), share)
    return found


def kept(keys: Tensor, share: float, layer: int, operation: int, first: int, features: int) -> Tensor:
    """bool [B, T, F]: what stays of features `first` to `first` + F."""
    salt = _signed(((layer + 2) * 8 + operation) * _STEP)
    low, high = _mixed(keys[0] ^ salt), _mixed(keys[1] + salt)
    number = torch.arange(first, first + features, device=keys.device)
    bits = low[..., None] ^ _mixed(_wrapped(number * _FEATURE))
    bits.mul_(_signed(_FEATURE)).add_(high[..., None])
    # 24 bits are compared, so that the threshold is exact in any arithmetic.
    return _mixed(bits).bitwise_and_(0xFFFFFF) >= round(share * (1 << 24))


class _Drop(torch.autograd.Function):
    """Keeps the mask, a byte an element, and not its product with x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.share = share
        return (x * mask).div_(1 - share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (grad * mask).div_(1 - ctx.share), None, None


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32 bits in which each bit of x moves each bit of the result."""
    x = x ^ _shifted(x, 16)
    x = x.mul_(_signed(_FIRST))
    x ^= _shifted(x, 15)
    x.mul_(_signed(_SECOND))
    x ^= _shifted(x, 16)
    return x


def _shifted(x: Tensor, by: int) -> Tensor:
    """Right, zeros coming in: torch's own shift repeats the sign."""
    return (x >> by).bitwise_and_((1 << (32 - by)) - 1)


def _signed(number: int) -> int:
    """The 32 bits of a number as torch's int32 has them."""
    low = number & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def _wrapped(x: Tensor) -> Tensor:
    """The low 32 bits of int64."""
    low = x & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
