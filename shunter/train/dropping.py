"""Which random numbers a step's dropout takes: those of its rows, whatever the layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from shunter.config.seed import derive_seed
from shunter.layout.piece import balanced
from shunter.models.dropout import Masks, token_keys
from shunter.parallel.mesh import Peers
from shunter.train.config import DropoutConfig


@dataclass(frozen=True)
class Dropping:
    """seeds: of each row of each of this rank's micro-batches."""

    config: DropoutConfig
    seeds: Sequence[Sequence[int]]

    @classmethod
    def of(
        cls, config: DropoutConfig, rows: Sequence[int], stream: int, step: int, total: int, data: Peers
    ) -> Dropping:
        """rows: of each micro-batch. Rows are numbered within the step's `total`, as noise numbers them."""
        first = balanced(total, data.size, data.index)[0]
        bounds = accumulate(rows, initial=first)
        seeds = [
            [derive_seed(stream, "dropout", step, row) for row in range(begin, end)]
            for begin, end in pairwise(bounds)
        ]
        return cls(config, seeds)

    def masks(self, number: int, length: int, device: torch.device, places: Tensor | None = None) -> Masks:
        """Of a micro-batch; places: those of a row's `length` tokens that are here, default all."""
        rows = torch.tensor(self.seeds[number], dtype=torch.int64, device=device)
        return self.masks_of(rows, length, places)

    def masks_of(self, rows: Tensor, length: int, places: Tensor | None = None) -> Masks:
        """Of rows by their seeds, int64 [B]."""
        here = torch.arange(length) if places is None else places
        keys = token_keys(rows, here.to(rows.device))
        return Masks(self.config.residual, self.config.inner, keys, keys)
