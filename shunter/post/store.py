"""A store of samples between tasks that run side by side: who has written what, who has read what.

After AsyncFlow's TransferQueue (arXiv 2507.01663, section 3). A row is a sample, a column a field of it. A
task reads rows whose columns are all written and that it has not read yet; each task reads each row once,
whatever others do.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shunter.config.errors import ShunterError
from shunter.post.samplers import Sampler, in_order


class Closed(Exception):
    """The store was closed: nothing more comes."""


class SampleStore:
    """Rows of named cells, for threads.

    capacity: rows that may be live; `insert` waits for `clear` when there are so many (back-pressure).
    A row that a task takes is lent to it; when the task has `done` its work, it has had the row. Only that is
    in the store's `state`: after a crash, what was lent and not done is given again.
    """

    def __init__(self, columns: Iterable[str], tasks: Iterable[str], *, capacity: int) -> None:
        self.columns, self.capacity = frozenset(columns), capacity
        self._cells: dict[int, dict[str, Any]] = {}
        self._done: dict[str, set[int]] = {task: set() for task in tasks}
        self._lent: dict[str, set[int]] = {task: set() for task in self._done}
        # For each task and set of columns that was asked for: the rows that are ready, in order.
        self._ready: dict[tuple[str, frozenset[str]], list[int]] = {}
        self._next = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.changes = 0  # so often something has changed
        self.most_live = 0

    @property
    def live(self) -> int:
        """Rows that are not cleared."""
        return len(self._cells)

    def rows(self) -> list[dict[str, Any]]:
        """The cells of all live rows, oldest first."""
        with self._changed:
            return [dict(cells) for _, cells in sorted(self._cells.items())]

    def had(self, task: str) -> frozenset[int]:
        """The live rows that the task has done."""
        with self._changed:
            return frozenset(self._done[task])

    def insert(self, rows: Sequence[Mapping[str, Any]], *, timeout: float = 600.0) -> list[int]:
        """New rows with the cells given; returns their numbers, which follow each other and are not reused.

        Waits while they would exceed the capacity. Raises ShunterError after `timeout` seconds, or for more
        rows than fit.
        """
        if len(rows) > self.capacity:
            raise ShunterError(f"{len(rows)} rows do not fit a store of {self.capacity}")
        with self._changed:
            self._wait(lambda: len(self._cells) + len(rows) <= self.capacity, timeout, "insert rows")
            named = [self._named(cells) for cells in rows]
            numbers = list(range(self._next, self._next + len(rows)))
            self._next += len(rows)
            for number, cells in zip(numbers, named, strict=True):
                self._cells[number] = cells
                self._note(number)
            self.most_live = max(self.most_live, len(self._cells))
            self._tell()
            return numbers

    def write(self, row: int, **cells: Any) -> None:
        """Write cells of a row, all of them at once. A cell is written once. Raises KeyError for a row that
        is cleared."""
        with self._changed:
            self._write({row: cells})

    def done(self, task: str, rows: Iterable[int] | Mapping[int, Mapping[str, Any]]) -> None:
        """The task has had these rows, which were lent to it; with the cells that it wrote, in one: whoever
        reads the state sees all of it or nothing. Raises ValueError for a row that was not lent."""
        with self._changed:
            written = rows if isinstance(rows, Mapping) else {row: {} for row in rows}
            if strange := sorted(written.keys() - self._lent[task]):
                raise ValueError(f"row {strange[0]} was not lent to {task}")
            self._write(written)
            self._lent[task] -= written.keys()
            self._done[task] |= written.keys()

    def give_back(self, task: str, rows: Iterable[int]) -> None:
        """Rows that were lent and not worked on: they are given again."""
        with self._changed:
            for row in rows:
                self._lent[task].remove(row)
                self._note(row)
            self._tell()

    def take(
        self,
        task: str,
        columns: Iterable[str],
        count: int,
        sampler: Sampler = in_order,
        *,
        timeout: float = 600.0,
    ) -> dict[int, dict[str, Any]]:
        """`count` rows with these columns that this task has not had, which lends them to it.

        Waits until there are so many. Raises Closed when nothing more comes, ShunterError after `timeout`
        seconds, and what another task failed with.
        """
        wanted = self._known(columns)
        taken: list[int] = []

        def there() -> bool:
            taken[:] = self._sampled(task, wanted, count, sampler)
            return bool(taken)

        with self._changed:
            self._wait(there, timeout, f"give {task} {count} rows", until_closed=True)
            return self._lend(task, wanted, taken)

    def poll(
        self, task: str, columns: Iterable[str], count: int, sampler: Sampler = in_order
    ) -> dict[int, dict[str, Any]]:
        """As `take`, but does not wait: nothing, where the sampler finds nothing."""
        wanted = self._known(columns)
        with self._changed:
            return self._lend(task, wanted, self._sampled(task, wanted, count, sampler))

    def clear(self, rows: Iterable[int]) -> None:
        """Forget rows, which makes room."""
        with self._changed:
            gone = set(rows)
            for row in gone:
                del self._cells[row]
            for had in (*self._done.values(), *self._lent.values()):
                had -= gone
            self._forget(gone)
            self._tell()

    def close(self) -> None:
        """Nothing more is inserted or written: whoever waits for more is told."""
        with self._changed:
            self._closed = True
            self._tell()

    def fail(self, error: BaseException) -> None:
        """A task has died: everybody who waits, or comes to, is told."""
        with self._changed:
            self._failure = self._failure or error
            self._tell()

    def await_change(self, seen: int) -> None:
        """Wait until `changes` is not `seen`, or a task has failed: for who looks at several things by turns.
        Who read `changes` before he looked misses nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != seen or self._failure is not None)

    def state(self) -> dict[str, Any]:
        """Everything, as plain values if cells are. Who restores it loses no row and has none twice: what was
        lent and not done is not noted, so it is given again."""
        with self._changed:
            return {
                "next": self._next,
                "cells": [[row, dict(cells)] for row, cells in sorted(self._cells.items())],
                "done": {task: sorted(rows) for task, rows in self._done.items()},
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        with self._changed:
            self._next = int(state["next"])
            self._cells = {int(row): dict(cells) for row, cells in state["cells"]}
            # A task that there was not yet when this was noted has had nothing.
            self._done = {task: set(state["done"].get(task, ())) for task in self._done}
            self._lent = {task: set() for task in self._done}
            self._ready = {}
            self._tell()

    def _tell(self) -> None:
        self.changes += 1
        self._changed.notify_all()

    def _write(self, written: Mapping[int, Mapping[str, Any]]) -> None:
        """All cells or none."""
        for row, cells in written.items():
            if again := sorted(self._cells[row].keys() & cells.keys()):
                raise ValueError(f"{', '.join(again)} of row {row} is written already")
            self._named(cells)
        for row, cells in written.items():
            self._cells[row].update(cells)
            self._note(row)
        self._tell()

    def _known(self, columns: Iterable[str]) -> frozenset[str]:
        wanted = frozenset(columns)
        if unknown := wanted - self.columns:
            raise ShunterError(f"the store has no column {sorted(unknown)[0]!r}")
        return wanted

    def _sampled(self, task: str, wanted: frozenset[str], count: int, sampler: Sampler) -> Sequence[int]:
        ready = self._ready_for(task, wanted)
        return sampler({row: self._cells[row] for row in ready}, count)

    def _lend(self, task: str, wanted: frozenset[str], taken: Sequence[int]) -> dict[int, dict[str, Any]]:
        self._lent[task].update(taken)
        self._forget(set(taken), task)
        return {row: {name: self._cells[row][name] for name in wanted} for row in taken}

    def _named(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := cells.keys() - self.columns:
            raise ShunterError(f"the store has no column {sorted(unknown)[0]!r}")
        return dict(cells)

    def _ready_for(self, task: str, wanted: frozenset[str]) -> list[int]:
        if (task, wanted) not in self._ready:
            had = self._done[task] | self._lent[task]
            self._ready[task, wanted] = sorted(
                row for row, cells in self._cells.items() if row not in had and wanted <= cells.keys()
            )
        return self._ready[task, wanted]

    def _note(self, row: int) -> None:
        """A row has changed: whom it is ready for now."""
        cells = self._cells[row].keys()
        for (task, wanted), ready in self._ready.items():
            at = bisect_left(ready, row)
            had = row in self._done[task] or row in self._lent[task] or ready[at : at + 1] == [row]
            if wanted <= cells and not had:
                ready.insert(at, row)

    def _forget(self, rows: set[int], only: str | None = None) -> None:
        """Rows that are ready no more."""
        for (task, _), ready in self._ready.items():
            if only in (None, task):
                ready[:] = [row for row in ready if row not in rows]

    def _wait(
        self, ready: Callable[[], bool], timeout: float, what: str, *, until_closed: bool = False
    ) -> None:
        end = time.monotonic() + timeout
        while True:
            if self._failure is not None:
                raise ShunterError(f"a task beside this one has failed ({self._failure})") from self._failure
            if ready():
                return
            if until_closed and self._closed:
                raise Closed
            left = end - time.monotonic()
            if left <= 0:
                raise ShunterError(
                    f"the store could not {what} within {timeout:g} s",
                    mend="A task is stuck, or reads a column that nobody writes.",
                )
            self._changed.wait(left)
