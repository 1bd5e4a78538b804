"""Messages between ranks: one first-in-first-out lane for each direction between two ranks.

The two directions go through two process groups, because on NCCL the messages of a group between two ranks
share one stream: two ranks that send to each other at the same moment would wait for each other for ever.

The shape of a message is told once for each kind of message and key (see `Mailbox.begin`); after that,
receives are posted ahead into buffers that are used again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Groups
from shunter.parallel.tree import Leaf, Spec, Tree, decode, encode, spec_of


class Kind(NamedTuple):
    """What messages of one shape have in common; both ends derive it from the program."""

    op: str
    stage: int
    part: str
    key: object


@dataclass
class _Lane:
    """Receives of one peer: those posted (in order), those still to post."""

    waiting: deque[tuple[int, Kind]] = field(default_factory=deque)
    posted: dict[int, tuple[Spec, list[Tensor], list[Any]]] = field(default_factory=dict)


class Mailbox:
    """One rank's lanes. `begin` a step, then `send` and `take` by the ids of the program's nodes."""

    def __init__(self, groups: Groups, rank: int, device: torch.device, in_flight: int) -> None:
        self.groups, self.rank, self.device, self.in_flight = groups, rank, device, in_flight
        self._told: dict[tuple[int, Kind], Spec] = {}
        self._heard: dict[tuple[int, Kind], Spec] = {}
        self._free: dict[Leaf, list[Tensor]] = defaultdict(list)
        self._lanes: dict[int, _Lane] = {}
        self._sent: deque[tuple[Any, Tensor]] = deque()

    def begin(self, receives: dict[int, list[tuple[int, Kind]]]) -> None:
        """Announce a step's receives: peer -> (node id, kind) in the lane's order."""
        self._lanes = {peer: _Lane(deque(messages)) for peer, messages in receives.items()}
        for peer in self._lanes:
            self._post_ahead(peer)

    def send(self, peer: int, kind: Kind, tree: Tree) -> None:
        """Hand a tree over; returns at once. Raises ShunterError if its shape is not what it was before."""
        spec = spec_of(tree)
        known = self._told.get((peer, kind))
        if known is None:
            self._told[peer, kind] = spec
            data = torch.frombuffer(bytearray(encode(spec)), dtype=torch.uint8).to(self.device)
            self._isend(peer, torch.tensor([len(data)], dtype=torch.int64, device=self.device))
            self._isend(peer, data)
        elif known != spec:
            raise ShunterError(
                f"rank {self.rank} sends {kind.stage}{kind.op} to rank {peer} as {_told(spec)}, and told it "
                f"{_told(known)} before",
                mend="Give micro-batches of different shapes different keys.",
            )
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        for leaf in spec:
            self._isend(peer, tree[leaf.name].detach().contiguous())

    def take(self, peer: int, id: int) -> Tree:
        """The tree of one receive, once it is there."""
        lane = self._lanes[peer]
        while id not in lane.posted:
            self._post(peer)
        spec, buffers, works = lane.posted.pop(id)
        for work in works:
            work.wait()
        self._post_ahead(peer)
        return {
            leaf.name: buffer.requires_grad_(leaf.grad) for leaf, buffer in zip(spec, buffers, strict=True)
        }

    def give_back(self, tree: Tree) -> None:
        """The buffers of a taken tree are not used any more."""
        for name, buffer in tree.items():
            leaf = Leaf(name, tuple(buffer.shape), buffer.dtype, buffer.requires_grad)
            self._free[leaf].append(buffer.detach())

    def finish(self) -> None:
        """Wait until everything sent has left."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def _post_ahead(self, peer: int) -> None:
        """Post what is known in shape, as many as may be in flight."""
        lane = self._lanes[peer]
        while (
            lane.waiting and len(lane.posted) < self.in_flight and (peer, lane.waiting[0][1]) in self._heard
        ):
            self._post(peer)

    def _post(self, peer: int) -> None:
        lane = self._lanes[peer]
        id, kind = lane.waiting.popleft()
        spec = self._heard.get((peer, kind))
        if spec is None:
            length = torch.zeros(1, dtype=torch.int64, device=self.device)
            self._irecv(peer, length).wait()
            data = torch.empty(int(length), dtype=torch.uint8, device=self.device)
            self._irecv(peer, data).wait()
            spec = self._heard[peer, kind] = decode(bytes(data.cpu().numpy()))
        buffers = [self._free[leaf].pop() if self._free[leaf] else leaf.empty(self.device) for leaf in spec]
        lane.posted[id] = spec, buffers, [self._irecv(peer, buffer) for buffer in buffers]

    def _isend(self, peer: int, tensor: Tensor) -> None:
        group = self.groups.up if peer > self.rank else self.groups.down
        work = dist.isend(tensor, self.groups.ranks[peer], group=group)
        self._sent.append((work, tensor))

    def _irecv(self, peer: int, tensor: Tensor) -> Any:
        group = self.groups.up if peer < self.rank else self.groups.down
        return dist.irecv(tensor, self.groups.ranks[peer], group=group)


def _told(spec: Spec) -> str:
    return ", ".join(f"{leaf.name} {list(leaf.shape)} {leaf.dtype}" for leaf in spec) or "nothing"
