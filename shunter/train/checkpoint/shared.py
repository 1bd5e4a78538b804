"""Checkpoints of a run on several ranks: the files of one process, whatever the layout.

Rank 0 collects and writes; every rank reads, and takes what it holds. So a run may go on with another
number of ranks, or in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shunter.parallel.collect import collect
from shunter.parallel.lost import answering
from shunter.train.checkpoint.lifecycle import Checkpointer, State, flatten
from shunter.train.world import World


class SharedCheckpointer(Checkpointer):
    """As `Checkpointer`; every rank calls the same methods in the same order."""

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        super().__init__(folder, keep, clean=world.rank == 0)
        self.world = world

    def save(self, step: int, state: State, extra: dict[str, Any]) -> Path:
        mine = {name: tensor for name, tensor in flatten(state).items() if not tensor.is_meta}
        with answering(self.world.rank, "bring the checkpoint together"):
            whole = collect(mine, self.world.groups, self.world.rank, self.world.device)
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
        return super().load(step, mine, check, partly=partly)
