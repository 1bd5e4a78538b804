"""What an all-to-all of experts costs by where its ranks stand (arXiv 2504.14960). Imports without torch.

Folded, expert ranks are taken from all ranks of a stage, neighbours first. Unfolded, as they classically are,
from those that differ in their data alone: then they are tp x cp ranks apart, and no more than data ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid


@dataclass(frozen=True)
class Sent:
    """Bytes from one rank to ranks of its own node, and to those of others."""

    inside: float = 0.0
    between: float = 0.0


@dataclass(frozen=True)
class Link:
    """Modelled: `alpha` seconds to begin a message to each peer, and `beta` seconds a byte."""

    alpha: float
    beta: float


def unfolded_experts(grid: Grid, rank: int) -> tuple[int, ...]:
    """The ranks that share out a rank's experts where ep is a part of the data axes.

    The innermost data ranks come first. Raises ShunterError where ep does not divide them: the classical
    limit that folding lifts.
    """
    data = grid.dp * grid.fsdp
    if data % grid.ep:
        raise ShunterError(
            f"ep {grid.ep} does not divide the {data} data ranks (dp {grid.dp} x fsdp {grid.fsdp}), as it "
            "must where experts are not folded",
            mend=f"Use {grid.ep} data ranks, or fold the experts.",
        )
    axes = grid.peers(("dp", "fsdp"), rank)
    place = axes.index(rank)
    first = place - place % grid.ep
    return axes[first : first + grid.ep]


def exchanged(rank: int, peers: Sequence[int], size: float, node: int) -> Sent:
    """An all-to-all of `size` bytes in equal parts, with `node` consecutive ranks on each node."""
    part = size / len(peers)
    here = sum(peer // node == rank // node for peer in peers) - 1
    return Sent(part * here, part * (len(peers) - 1 - here))


def layer_exchange(rank: int, peers: Sequence[int], rows: int, chosen: int, width: int, node: int) -> Sent:
    """Of a layer, forward and backward: rows x chosen vectors of `width` bytes go there and back, twice."""
    return exchanged(rank, peers, 4.0 * rows * chosen * width, node)


def modelled_seconds(sent: Sent, inside: Link, between: Link, peers: int) -> float:
    """Modelled, not measured: both kinds of links at once, after each peer's message has begun."""
    begun = (peers - 1) * (between.alpha if sent.between else inside.alpha)
    return begun + max(sent.inside * inside.beta, sent.between * between.beta)
