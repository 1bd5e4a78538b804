"""Checkpoints of a run on several ranks: each writes what it holds, and reads what it will hold.

The files are those of one process, in other pieces: a run may go on under any other layout, or in one
process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shunter.layout.grid import DENSE
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.parallel.lost import PeerLost, answering
from shunter.parallel.told import told_by_all
from shunter.record.points import reach
from shunter.train.checkpoint.lifecycle import (
    Checkpointer,
    State,
    agree,
    described,
    digested,
    flatten,
    read_manifest,
    write_manifest,
)
from shunter.train.checkpoint.parts import joined, read_parts, write_parts
from shunter.train.checkpoint.storage import TENSORS
from shunter.train.world import World


class SharedCheckpointer(Checkpointer):
    """As `Checkpointer`; every rank calls the same methods in the same order, in a folder that all see.

    held: what this rank holds of each parameter; its optimizer state is cut likewise. elsewhere: parameters
    that another stage holds too, and writes.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        world: World,
        held: Mapping[str, Holding],
        elsewhere: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(folder, keep, clean=world.rank == 0)
        self.world, self.held, self.elsewhere = world, held, elsewhere

    def save(self, step: int, state: State, extra: dict[str, Any]) -> Path:
        target = self.folder / f"step-{step:08d}"
        there = self.world.rank == 0 and target.exists() and self._is_whole(target)
        if self.world.first(int(there)):
            return target
        if self.world.rank == 0:
            return super().save(step, state, extra)
        self._together(self.folder / f".step-{step:08d}.tmp", step, state)
        return target

    def _write(self, staging: Path, step: int, state: State, extra: dict[str, Any]) -> None:
        every = self._together(staging, step, state)
        path = staging / TENSORS
        path.write_text(json.dumps(joined(each["tensors"] for each in every)), encoding="utf-8")
        files = {name: facts for each in every for name, facts in each["files"].items()}
        files |= digested([path], step)
        write_manifest(staging, step, files, extra)

    def _together(self, staging: Path, step: int, state: State) -> list[Any]:
        """All ranks write; what each wrote, on all. A failure of one is raised on all."""
        with answering(self.world.rank, "begin a checkpoint"):
            self.world.first(1)  # the folder is there
        mine: dict[str, Any] = {"tensors": {}, "files": {}, "failed": None}
        raised: BaseException | None = None
        try:
            reach("checkpoint.part", step=step)
            mine["tensors"] = write_parts(staging, self.world.rank, self._written(flatten(state)))
            written = {chunk["file"] for entry in mine["tensors"].values() for chunk in entry["chunks"]}
            mine["files"] = digested([staging / name for name in sorted(written)], step)
        except Exception as error:
            raised, mine["failed"] = error, str(error)
        with answering(self.world.rank, "hear what the others wrote"):
            every = told_by_all(mine, self.world.mesh.everyone, self.world.device)
        if raised is not None:
            raise raised
        for rank, each in enumerate(every):
            if each["failed"] is not None:
                raise PeerLost(
                    f"rank {rank} could not write its part of the checkpoint ({each['failed']})",
                    where=str(self.folder),
                    mend="See what that rank said; the run continues from its last checkpoint.",
                )
        return every

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
        inner = name.partition(".")[2]
        for parameter in (inner, inner.rpartition(".")[0]):
            if parameter in self.held:
                return parameter, self.held[parameter]
        return None

    def _piece(self, name: str, tensor: Tensor) -> Piece:
        found = self._holding(name)
        if found is None or tuple(tensor.shape) != found[1].piece.local_shape:
            return Piece.full(tensor.shape)  # a count, or a state that all ranks have
        return found[1].piece

    def _written(self, flat: Mapping[str, Tensor]) -> Iterator[tuple[str, Piece, Tensor]]:
        """Each value once: by the first of those that hold it."""
        place = self.world.mesh.place
        for name, tensor in flat.items():
            found, piece = self._holding(name), self._piece(name, tensor)
            if found is None:
                mine = self.world.rank == 0
            else:
                parameter, holding = found
                cut = holding if piece is holding.piece else Holding(piece)
                mine = parameter not in self.elsewhere and cut.is_first(place, DENSE[1:])
            if mine:
                yield name, piece, tensor
