"""Rows spread over context ranks."""

from __future__ import annotations

from torch import Tensor

from shunter.models.decoder import Decoder
from shunter.parallel.mesh import Peers


def spread_rows(decoder: Decoder, peers: Peers, length: int, kind: str) -> Tensor:
    raise NotImplementedError
