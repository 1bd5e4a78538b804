"""Frozen weights in four or eight bits, in blocks that each have a scale of their own.

Source: QLoRA (arXiv 2305.14314), section 3: NormalFloat4, and double quantisation of the blocks' scales.
One thing is otherwise: the second quantisation takes eight-bit integers, the paper eight-bit floats. The
scales stand around their mean, which is subtracted, and steps of one size fit them better (test_packed.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["int8", "nf4"]

BLOCK = 64  # weights that share a scale
GROUP = 256  # scales that share a scale

# Appendix E: quantiles of a normal distribution, with an exact zero, from -1 to 1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


class PackedWeight(nn.Module):
    """A weight [O, I] that no gradient reaches, in blocks of 64 along its rows, one row after the other.

    codes:  uint8, two weights a byte (nf4), or int8, one (int8); the last block is filled up with zeros.
    absmax: int8, the largest magnitude of each block, of which `mean` was taken away and `scale` is the unit.
    mean:   float32 [1]: a tensor without dims cannot be sharded.
    nf4 takes 0.516 bytes a weight, int8 1.016. Parameters, so that they move, are saved and sent as others
    are; they never have a gradient.
    """

    def __init__(self, weight: Tensor, kind: Kind) -> None:
        """Quantises. weight: floating, [O, I]; it is computed in float32."""
        super().__init__()
        self.shape, self.kind = (weight.shape[0], weight.shape[1]), kind
        flat = weight.detach().float().flatten()
        blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(dim=1)
        mean = largest.mean()[None]
        groups = nn.functional.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
        scale = groups.abs().amax(dim=1) / 127
        steps = groups / torch.where(scale > 0, scale, 1.0)[:, None]
        absmax = steps.round().to(torch.int8).flatten()[: len(largest)]
        # Codes are chosen for the scale that will be read, not for the one that was meant.
        read = _scales(absmax, scale, mean)
        unit = blocks / torch.where(read != 0, read, 1.0)[:, None]
        self.codes = _frozen(_encode(unit.flatten(), kind))
        self.absmax, self.scale, self.mean = _frozen(absmax), _frozen(scale), _frozen(mean)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[O, I], made anew at each call: computed in float32 at least, then rounded to `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        if self.kind == "nf4":
            both = _pairs(wide, self.codes.device).take(self.codes.long())
            values = torch.view_as_real(both).view(-1, BLOCK)
        else:
            values = self.codes.to(wide).div_(127).view(-1, BLOCK)
        values.mul_(_scales(self.absmax, self.scale, self.mean).to(wide)[:, None])
        rows, columns = self.shape
        return values.view(-1)[: rows * columns].view(rows, columns).to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes."""
        return sum(part.nbytes for part in self.parameters())


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _scales(absmax: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    """The largest magnitude of each block [blocks], float32."""
    return absmax.float() * scale.repeat_interleave(GROUP)[: len(absmax)] + mean


def _encode(unit: Tensor, kind: Kind) -> Tensor:
    """Codes of values in [-1, 1]."""
    if kind == "int8":
        return (unit * 127).round_().clamp_(-127, 127).to(torch.int8)
    levels = torch.tensor(NF4, device=unit.device)
    nearest = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return nearest[0::2] << 4 | nearest[1::2]


@lru_cache(maxsize=8)
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256]: the two values of each byte as one number, because a table is read a number at a time."""
    levels = torch.tensor(NF4, dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    both = torch.stack((levels[byte >> 4], levels[byte & 15]), dim=1)
    return torch.view_as_complex(both)
