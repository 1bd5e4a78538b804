"""A decoder whose rows are spread over context ranks."""

from __future__ import annotations

from torch import Tensor, nn

from shunter.models.decoder import Attention
from shunter.models.segments import SegmentPlan
from shunter.parallel.context.attend import Kind, attend
from shunter.parallel.context.zigzag import zigzag
from shunter.parallel.mesh import Peers


class SpreadAttention(nn.Module):
    """What stands in for `CausalAttention`: queries of this rank's tokens see those of all."""

    def __init__(self, peers: Peers, kind: Kind, window: int | None) -> None:
        super().__init__()
        self.peers, self.kind, self.window = peers, kind, window

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, segments: SegmentPlan | None, mask: Tensor | None
    ) -> Tensor:
        sight = None if segments is None else segments.whole
        return attend(q, k, v, sight, self.peers, kind=self.kind, window=self.window)


def spread_rows(part: nn.Module, peers: Peers, length: int, kind: Kind) -> Tensor:
    """Let every attention of a decoder, or of a part of one, reach over the peers; returns the positions of a
    row that are here, in order.

    Raises ShunterError for rows, or numbers of heads, that cannot be spread so.
    """
    here = zigzag(length, peers.size)[peers.index]
    for module in part.modules():
        if isinstance(module, Attention):
            module.core = SpreadAttention(peers, kind, module.spec.sliding_window)
    return here
