"""Keys and values of the tokens seen so far, preallocated."""

from __future__ import annotations

import torch
from torch import Tensor

from shunter.models.spec import DecoderSpec


class KVCache:
    """[layers, B, num_kv_heads, max_length, head_dim] each for keys and values.

    A token's place is its position, so rows of different lengths need no padding on the left, and a
    place past a row's end is overwritten when the row gets there.
    """

    def __init__(
        self, spec: DecoderSpec, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (spec.num_layers, batch, spec.num_kv_heads, max_length, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_length = max_length

    def store(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, Hkv, T, D] at positions [B, T]; returns those up to the last one."""
        index = positions[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, index, keys.to(self.keys.dtype))
        self.values[layer].scatter_(2, index, values.to(self.values.dtype))
        end = int(positions.max()) + 1
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows (finished ones leave the batch)."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
