"""The best states of a run, of which those that a checkpoint names are kept as well."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shunter.train.checkpoint.lifecycle import State
from shunter.train.checkpoint.shared import SharedCheckpointer


class Bests(SharedCheckpointer):
    """Keeps the newest, and `spared`: a run that dies goes on from a checkpoint, which remembers an older
    best and may not find the newer one again."""

    spared: frozenset[int] = frozenset()
    newest: int = -1

    def save(self, step: int, state: State, extra: dict[str, Any]) -> Path:
        target = self.folder / f"step-{step:08d}"
        if self.world.rank == 0 and step not in self.spared:
            shutil.rmtree(target, ignore_errors=True)  # of an attempt that died before its checkpoint
        self.newest = step
        return super().save(step, state, extra)

    def spare(self, steps: Iterable[int]) -> None:
        """Those that checkpoints name."""
        self.spared = frozenset(steps)

    def there(self, step: int) -> bool:
        """Whether it is whole; the same on all ranks."""
        return bool(self.world.first(int(self.world.rank == 0 and step in self.steps())))

    def _prune(self) -> None:
        for step, path in self._published():
            if step != self.newest and step not in self.spared:
                shutil.rmtree(path, ignore_errors=True)
