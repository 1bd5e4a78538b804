"""A decoder's weights between the layout in which it learns and the one in which it writes, on real ranks.

Three ways, to compare (arXiv 2409.19256, section 5.4):

hybridflow   Ranks that write with the same part of the model bring its shards together
             (`Hybrid.micro_group`). What a rank learns with lies inside what it writes with, so nothing is
             held twice.
vanilla      All ranks of a copy bring the whole model together, and each keeps its part of it; what it
             learns with lies elsewhere, so it is kept beside.
sharded      Weights are cut over all ranks, copies too, as ZeRO-3 cuts them; all bring them together.

Matrices of layers that are cut evenly travel by one all-gather for each matrix of a layer. What is not cut,
or only in some stages, goes from one rank that has it to each that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid
from shunter.layout.grid import Grid
from shunter.layout.piece import Box, Piece
from shunter.models.sharding import holdings
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import ProcessGroups

Style = Literal["hybridflow", "vanilla", "sharded"]


@dataclass
class Bill:
    """Bytes of one rank. received: from others. peak: of weights that are held, at most. staging: of one
    matrix that is under way, at most, beside that. redundant: held for learning beside what is written with.
    """

    received: int = 0
    peak: int = 0
    staging: int = 0
    redundant: int = 0


class Resharder:
    """The weights of one rank: `learning` or `writing`, of which one is filled.

    bill: of the last change to writing, of all weights; even: of those of which every stage and part has as
    much as every other, which the paper's table takes all weights to be.

    Parts are those of `models.sharding.holdings` with `tp` parts, of the layers of a stage; the first stage
    has the embedding, the last one the norm and the head (or the embedding again, where they are tied).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        layout: Hybrid,
        rank: int,
        groups: ProcessGroups,
        style: Style = "hybridflow",
        ranks: Sequence[int] | None = None,
    ) -> None:
        """ranks: global ones, of the layout's ranks. All ranks of the world call this at the same time.

        Raises ShunterError for a model that the layout does not cut evenly."""
        if spec.num_layers % layout.p:
            raise ShunterError(
                f"{spec.num_layers} layers are not in {layout.p} equal stages",
                mend="Let p divide the layers.",
            )
        self.spec, self.layout, self.rank, self.style = spec, layout, rank, style
        self.ranks = tuple(ranks or range(layout.size))
        self.seat = layout.seat(rank)
        self.bill, self.even = Bill(), Bill()
        self.learning: dict[str, Tensor] = {}
        self.writing: dict[str, Tensor] = {}
        members = {
            "hybridflow": layout.micro_group,
            "vanilla": layout.model_group,
            "sharded": lambda it: tuple(range(layout.size)),
        }[style]
        for each in dict.fromkeys(members(other) for other in range(layout.size)):
            groups.get([self.ranks[it] for it in each])
        self.members = members(rank)
        self.group = groups.get([self.ranks[it] for it in self.members])
        # What is there when all has come together, of which the part to write with is a part.
        self.target = self.written()
        self.gathered = self.target if style == "hybridflow" else self._all()

    def held(self, rank: int) -> dict[str, Piece]:
        """What a rank learns with."""
        seat = self.layout.seat(rank)
        pieces = _pieces(self.spec, self.layout.t, seat.t)
        return {name: pieces[name] for name in _stage(self.spec, self.layout.p, seat.p)}

    def written(self) -> dict[str, Piece]:
        """What this rank writes with."""
        pieces = _pieces(self.spec, self.layout.tg, self.seat.tg)
        return {name: pieces[name] for name in _stage(self.spec, self.layout.pg, self.seat.pg)}

    def _all(self) -> dict[str, Piece]:
        return {name: pieces for name, pieces in _pieces(self.spec, 1, 0).items()}

    @torch.no_grad()
    def fill(self, whole: Mapping[str, Tensor]) -> None:
        """Take this rank's weights for learning from the whole model's."""
        if self.style == "sharded":
            self.learning = {name: self._flat(tensor) for name, tensor in whole.items()}
        else:
            self.learning = {
                name: cut_part(whole[name], piece, Piece.full(piece.shape))
                for name, piece in self.held(self.rank).items()
            }
        self._note()

    @torch.no_grad()
    def to_writing(self) -> dict[str, Tensor]:
        """Bring together what this rank writes with. All members of a group call it."""
        assert not self.writing, "they are there"
        self.bill, self.even = Bill(), Bill()
        self._note()
        if self.style == "sharded":
            for name, piece in self._all().items():
                self._gather_flat(name, piece)
        else:
            self._gather()
        if self.style != "hybridflow":
            self._part()
        for bill, held in self._bills(self.learning):
            bill.redundant = held
        return self.writing

    @torch.no_grad()
    def to_learning(self) -> dict[str, Tensor]:
        """Give up what others learn with. No message is sent: what a rank learns with, it has."""
        if self.style == "hybridflow":
            held = self.held(self.rank)
            for name in [name for name in self.writing if name not in held]:
                del self.writing[name]
            for name, piece in held.items():  # one at a time, so that the two are never there together
                self.learning[name] = cut_part(self.writing.pop(name), piece, self.target[name])
                self._note()
        self.writing.clear()
        return self.learning

    def _gather(self) -> None:
        held = {member: self.held(member) for member in self.members}
        together: set[str] = set()
        for slot in _slots(self.spec, self.layout.p):
            names = {member: slot.of(self.layout.seat(member).p) for member in self.members}
            pieces = [(names[member], held[member][names[member]]) for member in self.members]
            if len({piece.numel for _, piece in pieces}) == 1 and len(set(pieces)) == len(pieces):
                self._gather_slot(pieces)
                together.update(names.values())
        for name in self.gathered:
            if name not in together:
                self._exchange(name, {m: held[m][name] for m in self.members if name in held[m]})

    def _gather_slot(self, pieces: Sequence[tuple[str, Piece]]) -> None:
        """One matrix of a layer of each stage, all parts: one all-gather."""
        mine, _ = pieces[self.members.index(self.rank)]
        shard = self.learning[mine]
        staged = self._brought(shard)
        self._received(mine, (len(pieces) - 1) * shard.nbytes)
        self._staged(staged.nbytes)
        dtype = shard.dtype
        del shard
        self._leave(mine)
        for (name, piece), flat in zip(pieces, staged, strict=True):
            if name not in self.writing:
                self.writing[name] = flat.new_empty(self.gathered[name].local_shape, dtype=dtype)
            place_part(flat.view(piece.local_shape), piece, self.writing[name], self.gathered[name])
        self._note()

    def _brought(self, shard: Tensor) -> Tensor:
        """[members, elements]: every member's shard, all of one size."""
        flat = shard.new_empty(len(self.members) * shard.numel())
        if self.group is None:
            flat.copy_(shard.flatten())
        else:
            dist.all_gather_single(flat, shard.flatten(), group=self.group)
        return flat.view(len(self.members), -1)

    def _exchange(self, name: str, held: Mapping[int, Piece]) -> None:
        """What some have: each other member gets every part that it lacks from one that has it."""
        mine = held.get(self.rank)
        shard = self.learning.get(name)
        dtype = next(iter(self.learning.values()), next(iter(self.writing.values()), None))
        assert dtype is not None
        whole = dtype.new_empty(self.gathered[name].local_shape)
        sends, receives = [], []
        owners: dict[Piece, list[int]] = {}
        for member, piece in held.items():
            owners.setdefault(piece, []).append(member)
        for piece, have in owners.items():
            lack = [member for member in self.members if held.get(member) != piece]
            for number, member in enumerate(lack):
                owner = have[number % len(have)]
                if self.rank == owner:
                    assert shard is not None
                    sends.append(dist.isend(shard.contiguous(), self.ranks[member], group=self.group))
                elif self.rank == member:
                    buffer = whole.new_empty(piece.local_shape)
                    work = dist.irecv(buffer, self.ranks[owner], group=self.group)
                    receives.append((work, buffer, piece))
                    self._received(name, buffer.nbytes)
        self._staged(sum(buffer.nbytes for _, buffer, _ in receives))
        for work, buffer, piece in receives:
            work.wait()  # type: ignore[union-attr]
            place_part(buffer, piece, whole, self.gathered[name])
        for work in sends:
            work.wait()  # type: ignore[union-attr]
        if mine is not None and shard is not None:
            place_part(shard, mine, whole, self.gathered[name])
        del shard
        self._leave(name)
        self.writing[name] = whole
        self._note()

    def _gather_flat(self, name: str, piece: Piece) -> None:
        shard = self.learning[name]
        staged = self._brought(shard)
        self._received(name, (len(self.members) - 1) * shard.nbytes)
        self._leave(name)
        self.writing[name] = staged.flatten()[: piece.numel].view(piece.shape)
        self._note()

    def _part(self) -> None:
        """From the whole model: the part to write with, and beside it the part to learn with."""
        held = {} if self.style == "sharded" else self.held(self.rank)

        def grows(name: str) -> int:
            kept = sum(pieces[name].numel for pieces in (held, self.target) if name in pieces)
            return kept - self.gathered[name].numel

        for name in sorted(self.gathered, key=grows):  # what is given up makes room first
            piece = self.gathered[name]
            whole = self.writing.pop(name)
            if self.style == "sharded":
                self.learning[name] = self._flat(whole)
            elif name in held:
                self.learning[name] = cut_part(whole, held[name], piece)
            if name in self.target:
                self.writing[name] = cut_part(whole, self.target[name], piece)
            del whole
            self._note()

    def _flat(self, whole: Tensor) -> Tensor:
        """This rank's share of a tensor's elements, filled up to equal shares."""
        size = -(-whole.numel() // len(self.members))
        index = self.members.index(self.rank)
        share = whole.flatten()[index * size : (index + 1) * size]
        found = whole.new_zeros(size)
        found[: len(share)] = share
        return found

    def _leave(self, name: str) -> None:
        """What was brought together holds it."""
        self.learning.pop(name, None)

    def _note(self) -> None:
        for (bill, learning), (_, writing) in zip(
            self._bills(self.learning), self._bills(self.writing), strict=True
        ):
            bill.peak = max(bill.peak, learning + writing)

    def _bills(self, tensors: Mapping[str, Tensor]) -> list[tuple[Bill, int]]:
        """Each bill, and how many bytes of these tensors are on it."""
        even = sum(tensor.nbytes for name, tensor in tensors.items() if is_even(name))
        return [(self.bill, _bytes(tensors)), (self.even, even)]

    def _received(self, name: str, size: int) -> None:
        self.bill.received += size
        if is_even(name):
            self.even.received += size

    def _staged(self, size: int) -> None:
        self.bill.staging = max(self.bill.staging, size)


def is_even(name: str) -> bool:
    """Whether a tensor is a matrix of a layer: those are cut, and each stage has as many."""
    return name.startswith("layers.") and "norm" not in name


@dataclass(frozen=True)
class _Slot:
    """A tensor of layer `number` of whatever stage."""

    number: int
    suffix: str
    per_stage: int

    def of(self, stage: int) -> str:
        return f"layers.{stage * self.per_stage + self.number}.{self.suffix}"


def _slots(spec: DecoderSpec, stages: int) -> list[_Slot]:
    """The tensors of a stage's layers, the largest first, so that little is under way when all is there."""
    per_stage = spec.num_layers // stages
    shapes = {
        name.partition("layers.0.")[2]: piece.numel
        for name, piece in _pieces(spec, 1, 0).items()
        if name.startswith("layers.0.")
    }
    order = sorted(shapes, key=lambda suffix: -shapes[suffix])
    return [_Slot(number, suffix, per_stage) for suffix in order for number in range(per_stage)]


def _stage(spec: DecoderSpec, stages: int, stage: int) -> list[str]:
    """Names of what a stage has."""
    per_stage = spec.num_layers // stages
    mine = range(stage * per_stage, (stage + 1) * per_stage)
    found = []
    for name in _pieces(spec, 1, 0):
        parts = name.split(".")
        if parts[0] == "layers":
            here = int(parts[1]) in mine
        elif parts[0] == "embed":
            here = stage == 0 or (spec.tied and stage == stages - 1)
        else:
            here = stage == stages - 1
        if here:
            found.append(name)
    return found


@lru_cache(maxsize=64)
def _pieces(spec: DecoderSpec, parts: int, index: int) -> dict[str, Piece]:
    """What part `index` of `parts` of every tensor is."""
    grid = Grid(tp=parts)
    if spec.experts is not None:
        raise ShunterError(
            "experts are not changed between layouts here", mend="Use a model without experts."
        )
    found = holdings(spec, grid, grid.coordinates(index), sequence=False)
    return {name: holding.piece for name, holding in found.items()}


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _within(box: Box, outer: Piece) -> tuple[slice, ...]:
    """Where a block of the whole stands in a part that contains it. Raises ShunterError where it does not."""
    found = outer.find([(begin, begin + size) for begin, size in zip(box.whole, box.size, strict=True)])
    if found is None:
        raise ShunterError(
            f"a part of a tensor of {list(outer.shape)} does not lie in one part to write with",
            mend="Use degrees that divide heads, feed-forward width and vocabulary.",
        )
    return found


def cut_part(outer: Tensor, piece: Piece, of: Piece) -> Tensor:
    """A copy of the part `piece` of what is the part `of`."""
    found = outer.new_empty(piece.local_shape)
    for box in piece.boxes():
        found[box.slices(box.part)] = outer[_within(box, of)]
    return found


def place_part(part: Tensor, piece: Piece, outer: Tensor, of: Piece) -> None:
    """Put a part where it belongs in what is the part `of`."""
    for box in piece.boxes():
        outer[_within(box, of)] = part[box.slices(box.part)]
