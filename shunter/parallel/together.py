"""A model of which ranks hold parts, whole on each of them for a while, with nothing held twice.

Where a model learns, a rank holds its parts; to write with it, a rank needs all of it. As in arXiv 2409.19256
(section 5.3, with one stage and one part to write with) what a rank learns with lies inside what it writes
with meanwhile: tensor by tensor it is put into the whole, what it lacks comes from ranks that have it
(`shunter.layout.together`), and its own memory is given back. The way back is without a message: parts are
taken out of the whole, whose memory is given back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.piece import Piece
from shunter.layout.together import Cell, Handing, elements, handings
from shunter.layout.zero import in_buckets
from shunter.parallel.collect import place, take
from shunter.parallel.lost import answering
from shunter.parallel.mesh import Peers
from shunter.parallel.resharding import Bill
from shunter.parallel.told import told_by_all
from shunter.private import place_of

ROUND_BYTES = 64 << 20  # of whole tensors that come together at once


class Together:
    """This rank's parts, or the whole tensors: one of the two has memory. First it is the parts.

    bill: bytes of the last time that all came together.
    """

    def __init__(
        self,
        parts: Mapping[str, Tensor],
        pieces: Mapping[str, Piece],
        whole: Mapping[str, Tensor],
        peers: Peers,
        device: torch.device,
        copies: Sequence[int],
        *,
        at_once: int = ROUND_BYTES,
    ) -> None:
        """parts: of this rank, each the part `pieces` of the tensor of its name in `whole`; all of the peers
        have the same whole ones, and call this at the same time. device: where all of them are. copies: the
        copy of the model that each of the peers has a part of. at_once: bytes of whole tensors whose messages
        are under way together.

        Raises ValueError where parts are missing, of another shape or type, or of nothing that is wanted.
        """
        self.parts, self.pieces, self.whole, self.peers, self.device = parts, pieces, whole, peers, device
        self.bill = Bill()
        facts = {name: [pieces[name].shape, pieces[name].ranges, str(parts[name].dtype)] for name in parts}
        held = [
            {name: _checked(name, told, whole) for name, told in of_rank.items()}
            for of_rank in told_by_all(facts, peers, device)
        ]
        # The largest first: less is under way when nearly all is there.
        sizes = sorted((-tensor.nbytes, name) for name, tensor in whole.items())
        self.rounds = in_buckets(((name, -size) for size, name in sizes), at_once)
        self.ways: dict[str, tuple[Handing, ...]] = {}
        for name in whole:
            try:
                self.ways[name] = handings(tuple(each.get(name) for each in held), tuple(copies))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        self.moving: dict[str, int] = {}  # parts that give their memory up, and its bytes
        for tensor in whole.values():
            without_memory(tensor)

    @contextmanager
    def there(self) -> Iterator[None]:
        """Within it the whole tensors are there, and the parts are not. Every one of the peers calls it."""
        # Where that fails a peer is gone, and this rank ends. Messages may still arrive: their memory stays.
        self._bring()
        try:
            yield
        finally:
            self._back()

    @torch.no_grad()
    def _bring(self) -> None:
        self.bill, self.moving = Bill(peak=self._resident()), self._moving()
        for names in self.rounds:
            for name in names:
                _give(self.whole[name], self.whole[name].nbytes)
                if name in self.parts:
                    place(self.parts[name].detach(), self.pieces[name], self.whole[name])
            with answering(self.peers.ranks[self.peers.index], "bring the weights together"):
                staged = self._exchange(names)
            parting = [name for name in names if name in self.moving]
            self.bill.staging = max(self.bill.staging, staged + sum(self.moving[name] for name in parting))
            for name in parting:
                without_memory(self.parts[name])
            self.bill.peak = max(self.bill.peak, self._resident())
        self.bill.redundant = sum(
            tensor.nbytes for name, tensor in self.parts.items() if name not in self.moving
        )

    @torch.no_grad()
    def _back(self) -> None:
        """Take the parts out of what is there, and give that up."""
        for names in reversed(self.rounds):
            for name in names:
                if name in self.moving and not self.parts[name].untyped_storage().nbytes():
                    _give(self.parts[name], self.moving[name])
                    take(self.whole[name], self.pieces[name], self.parts[name].detach())
                without_memory(self.whole[name])

    def _exchange(self, names: Sequence[str]) -> int:
        """All messages of some tensors; the bytes of memory that they took beside the tensors'."""
        me, ranks, group = self.peers.index, self.peers.ranks, self.peers.group
        messages: list[dist.P2POp] = []
        arriving: list[tuple[str, Handing, Tensor]] = []
        staged = 0
        for name in names:
            packed: dict[tuple[Cell, ...], Tensor] = {}  # what several takers get is packed once
            for way in self.ways[name]:
                if way.giver == me:
                    if way.cells not in packed:
                        flat = packed[way.cells] = self._packed(name, way)
                        own = _place(flat) == _place(self.parts[name])
                        staged += 0 if own else flat.nbytes
                    messages.append(dist.P2POp(dist.isend, packed[way.cells], ranks[way.taker], group))
                elif way.taker == me:
                    block = self.whole[name][_slices(way.cells[0])]
                    if len(way.cells) > 1 or not block.is_contiguous():
                        block = self.whole[name].new_empty(way.numel)
                        arriving.append((name, way, block))
                        staged += block.nbytes
                    messages.append(dist.P2POp(dist.irecv, block, ranks[way.giver], group))
                    self.bill.received += block.nbytes
        for work in dist.batch_isend_irecv(messages) if messages else ():
            work.wait()
        for name, way, flat in arriving:
            blocks = flat.split([elements(cell) for cell in way.cells])
            for cell, block in zip(way.cells, blocks, strict=True):
                there = self.whole[name][_slices(cell)]
                there.copy_(block.view(there.shape))
        return staged

    def _packed(self, name: str, way: Handing) -> Tensor:
        """What is handed over, flat; where it is one block without gaps, the part's own memory."""
        part, piece = self.parts[name].detach(), self.pieces[name]
        blocks = []
        for cell in way.cells:
            where = piece.find(cell)
            assert where is not None
            blocks.append(part[where].reshape(-1))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _moving(self) -> dict[str, int]:
        """All, but what shares its memory, or whose memory somebody else looks at (numpy)."""
        storages = {name: tensor.untyped_storage() for name, tensor in self.parts.items()}
        sharers = Counter(place_of(storage) for storage in storages.values())
        return {
            name: storage.nbytes()
            for name, storage in storages.items()
            if storage.resizable() and sharers[place_of(storage)] == 1
        }

    def _resident(self) -> int:
        """Bytes of weights that have memory."""
        tensors = (*self.parts.values(), *self.whole.values())
        storages = {place_of(each): each.nbytes() for each in (it.untyped_storage() for it in tensors)}
        return sum(storages.values())


def _place(tensor: Tensor) -> int:
    return place_of(tensor.untyped_storage())


def _checked(name: str, told: Sequence[Any], whole: Mapping[str, Tensor]) -> Piece:
    """What a rank says of a part that it has. Raises ValueError where that is no part of what is wanted."""
    shape, ranges, dtype = told
    if name not in whole:
        raise ValueError(f"{name} is not wanted")
    piece = Piece(tuple(shape), tuple(tuple((b, e) for b, e in held) for held in ranges))
    wanted = whole[name]
    if (piece.shape, dtype) != (tuple(wanted.shape), str(wanted.dtype)):
        raise ValueError(
            f"{name} is a {dtype} of {list(piece.shape)}, and a {wanted.dtype} of {list(wanted.shape)} is "
            "wanted"
        )
    return piece


def without_memory(tensor: Tensor) -> Tensor:
    """The same tensor, whose memory is given back; it can have some again. What shares it loses it too."""
    tensor.untyped_storage().resize_(0)
    return tensor


def _give(tensor: Tensor, size: int) -> None:
    """Memory of `size` bytes in the place of that which was given up. What is beyond the tensor, padding that
    shares its memory, is zeros as it was."""
    storage = tensor.untyped_storage()
    storage.resize_(size)
    if size > tensor.nbytes:
        torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).zero_()


def _slices(cell: Cell) -> tuple[slice, ...]:
    return tuple(slice(begin, end) for begin, end in cell)
