"""Checkpoints of a run on several ranks: the files of one process, whatever the layout.

Rank 0 collects and writes; every rank reads, and takes what it holds. So a run may go on with another
number of ranks, or in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shunter.parallel.collect import Piece, collect
from shunter.parallel.lost import answering
from shunter.train.checkpoint.lifecycle import Checkpointer, State, flatten
from shunter.train.world import World


class SharedCheckpointer(Checkpointer):
    """As `Checkpointer`; every rank calls the same methods in the same order.

    pieces: parameters of which each rank has some rows, by name; their optimizer state is cut likewise.
    """

    def __init__(
        self, folder: Path, keep: int, world: World, pieces: Mapping[str, Piece] | None = None
    ) -> None:
        super().__init__(folder, keep, clean=world.rank == 0)
        self.world, self.pieces = world, pieces or {}

    def save(self, step: int, state: State, extra: dict[str, Any]) -> Path:
        mine = {name: tensor for name, tensor in flatten(state).items() if not tensor.is_meta}
        with answering(self.world.rank, "bring the checkpoint together"):
            whole = collect(mine, self.world.groups, self.world.rank, self.world.device, self._cut(mine))
        if whole is None:
            return self.folder / f"step-{step:08d}"
        return super().save(step, whole, extra)

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
        mine = {name: tensor for name, tensor in flatten(state).items() if not tensor.is_meta}
        cut = self._cut(mine)
        whole = {name: tensor for name, tensor in mine.items() if name not in cut}
        extra = super().load(step, whole, check, partly=partly)
        for name, piece in cut.items():  # one after the other: there is room for one whole tensor
            tensor = mine[name]
            rows = tensor.new_empty(piece.total, *tensor.shape[1:])
            super().load(step, {name: rows}, partly=True)
            tensor.detach().copy_(rows[piece.begin : piece.end])
        return extra

    def _cut(self, state: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Which of the flattened names (`model.embed.weight`, `optimizer.embed.weight.exp_avg`) are cut."""
        found = {}
        for name, tensor in state.items():
            inner = name.partition(".")[2]
            for parameter, piece in self.pieces.items():
                if tensor.ndim and (inner == parameter or inner.startswith(f"{parameter}.")):
                    found[name] = piece
        return found
