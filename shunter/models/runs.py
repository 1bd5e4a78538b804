"""Where runs of equal numbers begin in rows."""

from __future__ import annotations

import torch
from torch import Tensor


def beginnings(segments: Tensor) -> Tensor:
    """[n]: the flat tokens of segments [B, T] where another segment, row or padding begins."""
    here = torch.ones_like(segments, dtype=torch.bool)
    here[:, 1:] = segments.diff(dim=1) != 0
    return here.flatten().nonzero().flatten()
