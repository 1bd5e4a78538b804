"""Which rows come next: a global order that no resume, batch size or world size can change."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed


class Rows(Protocol):
    """What the order depends on."""

    num_rows: int

    @property
    def digest(self) -> str: ...


class Loader:
    """An endless order of row numbers: each epoch a fresh shuffle, drawn from (seed, epoch) alone.

    The position is the count of rows taken since the beginning, by all ranks together. `turns` are positions
    from which on another seed orders what is left: (position, seed), in order of position.
    """

    def __init__(self, rows: Rows, seed: int, position: int = 0) -> None:
        if rows.num_rows < 1:
            raise ShunterError(
                "there are no rows to train on", mend="Give more text, or a smaller row_length."
            )
        self.rows, self.seed, self.position = rows, seed, position
        self.turns: list[tuple[int, int]] = []
        self._held: tuple[int, int, int] | None = None  # seed, turns, epoch of the order held
        self._order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def take(self, count: int) -> NDArray[np.int64]:
        """The next `count` row numbers; moves the position."""
        parts = []
        while count > 0:
            epoch, at = divmod(self.position, self.rows.num_rows)
            part = self._order_of(epoch)[at : at + count]
            parts.append(part)
            self.position += len(part)
            count -= len(part)
        return np.concatenate(parts)

    def turn(self, seed: int) -> None:
        """From here on another order: of the rows that are left of this epoch, and of all later epochs."""
        self.turns.append((self.position, seed))

    def state(self) -> dict[str, Any]:
        """The position as JSON."""
        return {
            "position": self.position,
            "seed": self.seed,
            "turns": self.turns,
            "digest": self.rows.digest,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved position. A changed corpus is refused: its rows are not those seen."""
        if state["digest"] != self.rows.digest:
            raise ShunterError(
                "the corpus is not the one that this run began with, so its position means nothing here",
                mend="Bring the old corpus back, or begin anew with --redo.",
            )
        self.position, self.seed = int(state["position"]), int(state["seed"])
        self.turns = [(int(at), int(seed)) for at, seed in state.get("turns", ())]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if self._held != (self.seed, len(self.turns), epoch):
            begin = epoch * self.rows.num_rows
            seed = [self.seed, *(other for at, other in self.turns if at <= begin)][-1]
            order = _drawn(seed, "epoch", epoch).permutation(self.rows.num_rows)
            for at, other in self.turns:
                if begin < at < begin + len(order):
                    order[at - begin :] = _drawn(other, "rest", epoch).permutation(order[at - begin :])
            self._order, self._held = order, (self.seed, len(self.turns), epoch)
        return self._order


def _drawn(seed: int, *keys: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(seed, *keys)))
