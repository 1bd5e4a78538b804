"""Rotary position embedding and its variants, computed in float32 as the reference weights expect."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shunter.models.spec import DecoderSpec


def inverse_frequencies(spec: DecoderSpec, length: int, device: torch.device) -> tuple[Tensor, float]:
    """[head_dim / 2] inverse wavelengths and the scale of cos and sin, for sequences up to `length`.

    linear: arXiv 2306.15595. dynamic: NTK scaling by the present length. llama3: arXiv 2407.21783,
    low frequencies stretched, high ones kept, a blend between. yarn: arXiv 2309.00071.
    """
    rope, dim = spec.rope, spec.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    original = rope.original_positions or spec.max_positions
    theta = rope.theta
    if rope.scaling == "dynamic":
        stretch = rope.factor * max(length, original) / original - (rope.factor - 1)
        theta = theta * stretch ** (dim / (dim - 2))
    inverse = 1.0 / theta**exponents
    if rope.scaling == "linear":
        return inverse / rope.factor, 1.0
    if rope.scaling == "llama3":
        wavelength = 2 * math.pi / inverse
        low, high = original / rope.low_freq_factor, original / rope.high_freq_factor
        smooth = (original / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blend = (1 - smooth) * inverse / rope.factor + smooth * inverse
        scaled = torch.where(wavelength > low, inverse / rope.factor, inverse)
        return torch.where((wavelength >= high) & (wavelength <= low), blend, scaled), 1.0
    if rope.scaling == "yarn":
        return _yarn(spec, inverse, original)
    return inverse, 1.0


def _yarn(spec: DecoderSpec, inverse: Tensor, original: int) -> tuple[Tensor, float]:
    rope, dim = spec.rope, spec.head_dim

    def turn(rotations: float) -> float:
        """The dim at which a wavelength makes so many rotations over the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = max(math.floor(turn(rope.beta_fast)), 0), min(math.ceil(turn(rope.beta_slow)), dim - 1)
    width = high - low or 0.001
    steps = torch.arange(dim // 2, dtype=torch.float32, device=inverse.device)
    ramp = ((steps - low) / width).clamp(0, 1)
    scale = rope.attention_factor or (0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0)
    return inverse / rope.factor * ramp + inverse * (1 - ramp), scale


def tables(spec: DecoderSpec, positions: Tensor, dtype: torch.dtype, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [B, 1, T, head_dim / 2] for positions [B, T]."""
    inverse, scale = inverse_frequencies(spec, length, positions.device)
    angles = positions.float()[:, None, :, None] * inverse
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, head_dim], the halves of the last dim turned against each other."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
