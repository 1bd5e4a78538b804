"""Experts on several ranks: tokens travel to them and back (arXiv 2504.14960, section 3.3).

Along `ep` each rank holds some experts whole; along `etp` it holds a part of the width of each. Both grids
fold over the ranks of the dense layers: whatever tokens a rank has, few or none, it sends each to the ranks
that hold its experts, so that no communication is needed between the two grids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shunter.models.moe import MoE, by_expert, collect, routers, spread, with_void
from shunter.models.router import Routing
from shunter.models.spec import ExpertsSpec
from shunter.parallel.collective import all_gather
from shunter.parallel.exchange import exchange, gather_rows, reduce_rows
from shunter.parallel.mesh import Peers


def reach_experts(
    moe: MoE,
    ep: Peers,
    etp: Peers,
    *,
    sequence: Peers | None = None,
    places: Callable[[int], Tensor] | None = None,
    pad: bool = False,
) -> None:
    """Reach the experts of other ranks; those here are this rank's part already.

    Each rank then passes its own tokens to `moe`. Gradients of experts are sums over the tokens of all peers
    of ep and etp; those of the router and of the shared expert are of this rank's tokens alone.

    sequence: ranks that hold other tokens of the same rows, equally many each, one after the other: what
    looks at whole rows (capacity, balance) asks them.  places: of a row's length, where in the row each
    of these tokens stands, when a rank's are not neighbours.  pad: see `MoE`; `router.rows` is the same on
    all ranks then.
    """
    moe.pad = pad
    if ep.size * etp.size > 1:
        moe.dispatch = Dispatcher(moe.experts, moe.spec, ep, etp, pad=pad)
    if sequence is not None and sequence.size > 1:
        moe.router.others = RowPeers(sequence, places)


@dataclass(frozen=True)
class Route:
    """The traffic of one layer and micro-batch, in rows.

    send, receive: to and from each peer of ep.  sizes: that each peer of etp then has for these experts.
    order: of all gathered rows, sorted by expert.  counts: of each expert here.
    """

    ep: Peers
    etp: Peers
    send: Sequence[int]
    receive: Sequence[int]
    sizes: Sequence[int]
    order: Tensor
    counts: Tensor


class Dispatcher:
    """Tokens to the ranks that hold their experts, and the sums back."""

    def __init__(
        self, experts: nn.Module, spec: ExpertsSpec, ep: Peers, etp: Peers, *, pad: bool = False
    ) -> None:
        # Not a child: the experts' names are those of the whole model.
        self.experts, self.num_experts = experts, spec.num_experts
        self.ep, self.etp, self.pad = ep, etp, pad

    def __call__(self, x: Tensor, routing: Routing) -> Tensor:
        """[n, D] for this rank's tokens x [n, D]; every peer calls it, with however many."""
        if self.pad and routing.room is not None:
            x, routing, pairs = with_void(x, routing, self.num_experts)
            return self._travel(x, routing, pairs, self.filled(len(pairs), x.device))[:-1]
        pairs, counts = by_expert(routing, self.num_experts)
        route = self.plan(counts)
        return self._travel(x, routing, pairs[: sum(route.send)], route)

    def _travel(self, x: Tensor, routing: Routing, pairs: Tensor, route: Route) -> Tensor:
        rows, weights = _Send.apply(*spread(x, routing.weights, pairs), route)
        rows = _Return.apply(self.experts(rows, weights, route.counts), route)
        return collect(rows, pairs, *routing.experts.shape)

    def filled(self, rows: int, device: torch.device) -> Route:
        """Where every rank sends as many rows to each expert, `rows` to all: nobody has to be asked."""
        ep, etp = self.ep, self.etp
        each, local = rows // ep.size, self.num_experts // ep.size
        arrived = torch.arange(etp.size * ep.size * each, device=device)
        order = arrived.view(etp.size, ep.size, local, each // local).permute(2, 0, 1, 3).flatten()
        counts = torch.full((local,), len(order) // local, device=device)
        even = [each] * ep.size
        return Route(ep, etp, even, even, [rows] * etp.size, order, counts)

    @torch.no_grad()
    def plan(self, counts: Tensor) -> Route:
        """From this rank's counts [E]. The one place where the host waits for the device."""
        ep, etp = self.ep, self.etp
        every = all_gather(all_gather(counts[None], 0, ep)[None], 0, etp)  # [etp, ep, E]
        table = every.tolist()
        local = self.num_experts // ep.size

        def total(of: Sequence[int], peer: int) -> int:
            return sum(of[peer * local : (peer + 1) * local])

        column = table[etp.index]
        send = [total(column[ep.index], peer) for peer in range(ep.size)]
        receive = [total(sender, ep.index) for sender in column]
        sizes = [sum(total(sender, ep.index) for sender in part) for part in table]
        # Rows arrive by (etp peer, ep peer, expert); a stable sort brings each expert's together.
        here = every[:, :, ep.index * local : (ep.index + 1) * local]
        experts = torch.arange(local, device=counts.device).expand_as(here)
        experts = experts.flatten().repeat_interleave(here.flatten(), output_size=sum(sizes))
        order = experts.argsort(stable=True)
        return Route(ep, etp, send, receive, sizes, order, here.sum((0, 1)))


def _there(rows: Tensor, route: Route) -> Tensor:
    rows = exchange(rows, route.send, route.receive, route.ep)
    return gather_rows(rows, route.sizes, route.etp).index_select(0, route.order)


def _back(rows: Tensor, route: Route) -> Tensor:
    """The adjoint of `_there`."""
    arrived = torch.empty_like(rows)
    arrived[route.order] = rows
    arrived = reduce_rows(arrived, route.sizes, route.etp)
    return exchange(arrived, route.receive, route.send, route.ep)


class _Send(torch.autograd.Function):
    """Rows [m, D] and weights [m]. One function for both, so that all ranks exchange in one order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, route: Route) -> tuple[Tensor, Tensor]:
        ctx.route = route
        return _there(rows, route), _there(weights, route)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor, weights: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _back(rows, ctx.route), _back(weights, ctx.route), None


class _Return(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, route: Route) -> Tensor:
        ctx.route = route
        return _back(rows, route)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _there(grad, ctx.route), None


def sum_load(model: nn.Module, peers: Peers) -> None:
    """Make every router's load that of all ranks' tokens: after the last backward, before `rebalance`.

    peers: ranks whose tokens are different ones. All of them call it, after at least one backward pass each.
    """
    loads = [router.load for _, router in routers(model) if router.load is not None]
    if peers.size == 1 or not loads:
        return
    parts = [part for load in loads for part in (load.chosen, load.dropped, load.balance, load.z)]
    summed = torch.cat([part.flatten().double() for part in parts])  # whole numbers stay exact below 2^53
    dist.all_reduce(summed, group=peers.group)
    for part, total in zip(parts, summed.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view(part.shape))


class RowPeers:
    """Ranks that hold equal parts of the same rows; see `router.Others`."""

    def __init__(self, peers: Peers, places: Callable[[int], Tensor] | None = None) -> None:
        self.peers, self._places = peers, places

    @property
    def ranks(self) -> int:
        """How many they are."""
        return self.peers.size

    def total(self, counts: Tensor) -> Tensor:
        """The sum [B, E] of all ranks' counts."""
        summed = counts.clone()
        dist.all_reduce(summed, group=self.peers.group)
        return summed

    def gather(self, parts: list[Tensor]) -> tuple[list[Tensor], int]:
        """All ranks' tokens of each tensor [B, T, ...], and the number of the first that is ours."""
        found = []
        for part in parts:
            plain = part.to(torch.uint8) if part.dtype == torch.bool else part  # not every backend sends bits
            found.append(all_gather(plain, 1, self.peers).to(part.dtype))
        return found, self.peers.index * parts[0].shape[1]

    def places(self, length: int) -> Tensor | None:
        """[length]: where in its row each gathered token stands; None: in this order."""
        return None if self._places is None else self._places(length)
