"""Checkpoints of a run on several ranks: each writes what it holds, and reads what it will hold.

The files are those of one process, in other pieces: a run may go on under any other layout, or in one
process.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.parallel.lost import PeerLost, answering
from shunter.parallel.told import told_by_all
from shunter.record.points import reach
from shunter.train.checkpoint.later import Part
from shunter.train.checkpoint.lifecycle import (
    Checkpointer,
    State,
    agree,
    described,
    flatten,
    read_manifest,
)
from shunter.train.checkpoint.parts import read_parts, write_parts
from shunter.train.world import World


class SharedCheckpointer(Checkpointer):
    """As `Checkpointer`; every rank calls the same methods in the same order, in a folder that all see.

    held: what this rank holds of each parameter. kept: what of its optimizer's state; by default as held.
    elsewhere: parameters that another stage holds too, and writes. beside: whether saves will go on beside
    the training; the ranks then agree on them over a group of their own, which no pass uses.

    A save is three rounds: reserve (rank 0), write (all), publish (rank 0). After each, all ranks hear how
    every one fared, and whatever one has failed of is raised on all.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        world: World,
        held: Mapping[str, Holding],
        elsewhere: frozenset[str] = frozenset(),
        *,
        beside: bool = False,
        kept: Mapping[str, Holding] | None = None,
    ) -> None:
        super().__init__(folder, keep, clean=world.rank == 0)
        self.world, self.held, self.elsewhere = world, held, elsewhere
        self.kept = held if kept is None else kept
        self.peers = world.mesh.beside() if beside else world.mesh.everyone
        self._device = torch.device("cpu") if beside else world.device

    def look(self, landed: bool | None = None) -> None:
        """All ranks act as rank 0 finds it: one that went ahead would leave the others waiting in a pass.

        landed: whether rank 0's `landed` is true, where all ranks have been told already.
        """
        if self._flight is not None and (self.world.first(int(self.landed())) if landed is None else landed):
            self.wait()

    def _parts(self, state: State) -> list[Part]:
        return list(self._written(flatten(state)))

    def _publish(self, step: int, parts: list[Part], extra: dict[str, Any]) -> None:
        first, staging = self.world.rank == 0, self.folder / f".step-{step:08d}.tmp"

        def reserve() -> bool:
            there = first and self._is_there(step)
            if first and not there:
                self._reserve(step)
            return there

        def write() -> dict[str, Any]:
            if not first:  # rank 0 passed it when it made the folder
                reach("checkpoint.reserve", step=step)
            files: dict[str, Any] = {}
            return {"tensors": write_parts(staging, self.world.rank, parts, files, step), "files": files}

        def publish() -> None:
            if first:
                files = {name: facts for each in every for name, facts in each["files"].items()}
                self._finish(staging, step, [each["tensors"] for each in every], files, extra)

        try:
            if self._round("begin a checkpoint", reserve)[0]:
                return
            every = self._round("write its part of the checkpoint", write)
            self._round("publish the checkpoint", publish)
        except BaseException:
            if first:
                shutil.rmtree(staging, ignore_errors=True)
            raise

    def _round(self, what: str, work: Callable[[], Any]) -> list[Any]:
        """What each rank's `work` returns, on all ranks. Raises there what it raised here, or PeerLost."""
        mine: dict[str, Any] = {"made": None, "failed": None}
        raised: BaseException | None = None
        try:
            mine["made"] = work()
        except Exception as error:
            raised, mine["failed"] = error, str(error) or type(error).__name__
        with answering(self.world.rank, what):
            every = told_by_all(mine, self.peers, self._device)
        if raised is not None:
            raise raised
        for rank, each in enumerate(every):
            if each["failed"] is not None:
                raise PeerLost(
                    f"rank {rank} could not {what} ({each['failed']})",
                    where=str(self.folder),
                    mend="See what that rank said; the run continues from its last checkpoint.",
                )
        return [each["made"] for each in every]

    def latest(self) -> int | None:
        found = super().latest() if self.world.rank == 0 else None
        step = self.world.first(-1 if found is None else found)
        return None if step < 0 else step

    def load(
        self,
        step: int,
        state: State,
        check: Callable[[dict[str, Any], str], None] | None = None,
        *,
        partly: bool = True,
    ) -> dict[str, Any]:
        path = self.folder / f"step-{step:08d}"
        # Rank 0 has compared every byte with its digest; the others need not all read everything.
        manifest = self._verify(path) if self.world.rank == 0 else read_manifest(path)
        if check is not None:
            check(manifest["extra"], str(path))
        stored = described(path)
        parts = [(name, self._piece(name, tensor), tensor) for name, tensor in flatten(state).items()]
        agree(
            path, {name: (tensor.dtype, piece.shape) for name, piece, tensor in parts}, stored, partly=partly
        )
        read_parts(path, stored, parts)
        extra: dict[str, Any] = manifest["extra"]
        return extra

    def _holding(self, name: str) -> tuple[str, Holding] | None:
        """Of a flattened name (`model.embed.weight`, `optimizer.embed.weight.exp_avg`)."""
        owner, _, inner = name.partition(".")
        return found_in(self.kept if owner == "optimizer" else self.held, inner)

    def _piece(self, name: str, tensor: Tensor) -> Piece:
        found = self._holding(name)
        if found is None or tuple(tensor.shape) != found[1].piece.local_shape:
            return Piece.full(tensor.shape)  # a count, or a state that all ranks have
        return found[1].piece

    def _written(self, flat: Mapping[str, Tensor]) -> Iterator[Part]:
        """Each value once: by the first of those that hold it."""
        mesh = self.world.mesh
        for name, tensor in flat.items():
            found, piece = self._holding(name), self._piece(name, tensor)
            if found is None:
                mine = self.world.rank == 0
            else:
                parameter, holding = found
                # What is whole though its parameter is cut, such as a momentum, stands on one of its ranks.
                alone = piece is holding.piece or tensor.ndim > 0
                holder = holding if alone else Holding(piece)
                mine = parameter not in self.elsewhere and holder.is_first(mesh.at(holding.grid).place)
            if mine:
                yield name, piece, tensor


def found_in(held: Mapping[str, Holding], name: str) -> tuple[str, Holding] | None:
    """The parameter of this name, or of which this is a part of the optimizer's state."""
    for parameter in (name, name.rpartition(".")[0]):
        if parameter in held:
            return parameter, held[parameter]
    return None
