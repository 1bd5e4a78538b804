"""Frozen weights in four or eight bits, in blocks that each have a scale of their own.

Source: QLoRA (arXiv 2305.14314), section 3: NormalFloat4, and double quantisation of the blocks' scales.
One thing is otherwise: the second quantisation takes eight-bit integers, the paper eight-bit floats. The
scales stand around their mean, which is subtracted, and steps of one size fit them better (test_packed.py).

A weight is packed whole, then cut: a rank reads in its part what one process reads there, to the last bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from shunter.layout.piece import Piece

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
    """A weight [O, I] that no gradient reaches, or a part of one; each row in blocks of 64.

    codes:  [O, I / 2] uint8, two weights a byte (nf4), or [O, I] int8, one (int8); sizes are rounded up.
    absmax: [O, I / 64] int8, the largest magnitude of each block, of which `mean` was taken away and `scale`
            is the unit.
    scale:  float32, of each group of 256 blocks of the whole, one row after the other.
    mean:   float32 [1]: a tensor without dims cannot be sharded.
    nf4 takes 0.516 bytes a weight, int8 1.016. Parameters, so that they move, are saved and sent as others
    are; they never have a gradient.
    """

    def __init__(self, weight: Tensor, kind: Kind) -> None:
        """Quantises. weight: floating, [O, I]; it is computed in float32."""
        super().__init__()
        rows, columns = weight.shape
        self.kind = kind
        self.piece = Piece.full((rows, columns))
        blocks = nn.functional.pad(weight.detach().float(), (0, -columns % BLOCK)).view(rows, -1, BLOCK)
        largest = blocks.abs().amax(dim=2)
        mean = largest.mean()[None]
        middle = (largest - mean).flatten()
        groups = nn.functional.pad(middle, (0, -len(middle) % GROUP)).view(-1, GROUP)
        scale = groups.abs().amax(dim=1) / 127
        steps = groups / torch.where(scale > 0, scale, 1.0)[:, None]
        absmax = steps.round().to(torch.int8).flatten()[: len(middle)].view(rows, -1)
        self.absmax, self.scale, self.mean = _frozen(absmax), _frozen(scale), _frozen(mean)
        # Codes are chosen for the scale that will be read, not for the one that was meant.
        read = self._scales()
        unit = (blocks / torch.where(read != 0, read, 1.0)[..., None]).view(rows, -1)
        self.codes = _frozen(
            _encode(unit[:, : columns + (columns % 2 if kind == "nf4" else 0)].contiguous(), kind)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Of the part that is here."""
        rows, columns = self.piece.local_shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def pieces(self, piece: Piece) -> dict[str, Piece]:
        """Of each tensor of a whole weight what a part of it needs. Columns [b, e) of it are of one range.

        A byte or a block through which the part's edge goes is needed on both sides of it.
        """
        rows, ((begin, end),) = piece.ranges
        per_byte = 2 if self.kind == "nf4" else 1

        def cut(tensor: Tensor, width: int) -> Piece:
            return Piece(tuple(tensor.shape), (rows, ((begin // width, -(-end // width)),)))

        whole = {"scale": Piece.full(self.scale.shape), "mean": Piece.full(self.mean.shape)}
        return {"codes": cut(self.codes, per_byte), "absmax": cut(self.absmax, BLOCK), **whole}

    def place(self, piece: Piece) -> None:
        """Say which part of the weight is here, once the tensors are cut by `pieces`."""
        self.piece = piece

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[O, I] of the part, made anew at each call: in float32 at least, then rounded to `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        (rows, columns), (begin, _) = self.shape, self.piece.ranges[1][0]
        if self.kind == "nf4":
            both = _pairs(wide, self.codes.device).take(self.codes.long())
            values = torch.view_as_real(both).view(rows, -1)[:, begin % 2 : begin % 2 + columns]
        else:
            values = self.codes.to(wide).div_(127)
        scales = self._scales().to(wide)
        if begin % BLOCK or columns % BLOCK:
            first = begin % BLOCK
            values = values * scales.repeat_interleave(BLOCK, dim=1)[:, first : first + columns]
        else:
            values.view(rows, -1, BLOCK).mul_(scales[..., None])
        return values.to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes."""
        return sum(part.nbytes for part in self.parameters())

    def _scales(self) -> Tensor:
        """The largest magnitude of each block that is here, float32."""
        (rows, columns), device = self.piece.shape, self.absmax.device
        each = -(-columns // BLOCK)
        if self.piece.is_whole:
            unit = self.scale.repeat_interleave(GROUP)[: rows * each].view(rows, each)
        else:
            begin, end = self.piece.ranges[1][0]
            block = torch.arange(begin // BLOCK, -(-end // BLOCK), device=device)
            row = torch.cat([torch.arange(low, high, device=device) for low, high in self.piece.ranges[0]])
            unit = self.scale[(row[:, None] * each + block) // GROUP]
        return self.absmax.float() * unit + self.mean


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _encode(unit: Tensor, kind: Kind) -> Tensor:
    """Codes of values [O, I] in [-1, 1]; I is even for nf4."""
    if kind == "int8":
        return (unit * 127).round_().clamp_(-127, 127).to(torch.int8)
    levels = torch.tensor(NF4, device=unit.device)
    nearest = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return nearest[:, 0::2] << 4 | nearest[:, 1::2]


@lru_cache(maxsize=8)
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256]: the two values of each byte as one number, because a table is read a number at a time."""
    levels = torch.tensor(NF4, dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    both = torch.stack((levels[byte >> 4], levels[byte & 15]), dim=1)
    return torch.view_as_complex(both)
