"""A store of samples between tasks that run side by side: who has written what, who has read what.

After AsyncFlow's TransferQueue (arXiv 2507.01663, section 3). A row is a sample, a column a field of it. A
task reads rows whose columns are all written and that it has not read yet; each task reads each row once,
whatever others do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from shunter.config.errors import ShunterError

# (rows that are ready, how many are wanted) -> rows to take; fewer than wanted: wait.
Sampler = Callable[[Sequence[int], int], Sequence[int]]


class Closed(Exception):
    """The store was closed: nothing more comes."""


def in_order(ready: Sequence[int], count: int) -> Sequence[int]:
    """The oldest rows."""
    return ready[:count] if len(ready) >= count else []


def by_group(size: int, key: Callable[[int], Hashable]) -> Sampler:
    """Whole groups of `size` rows with one key, those of the oldest rows first.

    Rows come in the order in which they were finished, so their numbers say nothing of groups: `key` does,
    such as `store.cell("prompt")`. Raises ValueError for a count that is no multiple, and a larger group.
    """

    def take(ready: Sequence[int], count: int) -> Sequence[int]:
        if count % size:
            raise ValueError(f"{count} rows are no whole groups of {size}")
        groups: dict[Hashable, list[int]] = {}
        for row in ready:
            groups.setdefault(key(row), []).append(row)
        if large := [each for each, rows in groups.items() if len(rows) > size]:
            raise ValueError(f"the group {large[0]!r} has {len(groups[large[0]])} rows, not {size}")
        whole = [rows for rows in groups.values() if len(rows) == size]
        taken = [row for rows in whole[: count // size] for row in rows]
        return taken if len(taken) == count else []

    return take


def balanced(lengths: Mapping[int, float], parts: int) -> list[list[int]]:
    """Rows shared out into `parts` lists of like size and like total length: the longest to the emptiest.

    A list that is full takes no more, so that sizes differ by one at most.
    """
    most = -(-len(lengths) // parts)
    found: list[list[int]] = [[] for _ in range(parts)]
    totals = [0.0] * parts
    for row in sorted(lengths, key=lambda row: (-lengths[row], row)):
        open_ = [i for i in range(parts) if len(found[i]) < most]
        part = min(open_, key=lambda i: (totals[i], i))
        found[part].append(row)
        totals[part] += lengths[row]
    return found


class SampleStore:
    """Rows of named cells, for threads.

    A task that takes a row has it on loan until it says that it is done with it: only then does a crash not
    bring it back. capacity: rows that may be live; `insert` waits for `clear` when there are so many
    (back-pressure).
    """

    def __init__(self, columns: Iterable[str], tasks: Iterable[str], *, capacity: int) -> None:
        self.columns, self.capacity = frozenset(columns), capacity
        self._cells: dict[int, dict[str, Any]] = {}
        # Rows that a task has taken, and those of them that it has finished.
        self._read: dict[str, set[int]] = {task: set() for task in tasks}
        self._done: dict[str, set[int]] = {task: set() for task in self._read}
        self._next = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.most_live = 0

    @property
    def live(self) -> int:
        """Rows that are not cleared."""
        return len(self._cells)

    def insert(self, rows: Sequence[Mapping[str, Any]], *, timeout: float = 600.0) -> list[int]:
        """New rows with the cells given; returns their numbers, which follow each other and are not reused.

        Waits while they would exceed the capacity. Raises ShunterError after `timeout` seconds, or for more
        rows than fit.
        """
        if len(rows) > self.capacity:
            raise ShunterError(f"{len(rows)} rows do not fit a store of {self.capacity}")
        with self._changed:
            self._wait(lambda: len(self._cells) + len(rows) <= self.capacity, timeout, "insert rows")
            numbers = list(range(self._next, self._next + len(rows)))
            self._next += len(rows)
            for number, cells in zip(numbers, rows, strict=True):
                self._cells[number] = self._named(cells)
            self.most_live = max(self.most_live, len(self._cells))
            self._changed.notify_all()
            return numbers

    def cell(self, column: str) -> Callable[[int], Any]:
        """A function that gives this cell of a row, for samplers, which are asked while nothing changes."""
        return lambda row: self._cells[row].get(column)

    def write(self, row: int, by: str | None = None, /, **cells: Any) -> None:
        """Write cells of a row, all of them at once. A cell is written once. by: the task that is done with
        the row by that. Raises KeyError for a row that is cleared."""
        with self._changed:
            there = self._cells[row]
            if again := sorted(there.keys() & cells.keys()):
                raise ValueError(f"{', '.join(again)} of row {row} is written already")
            there.update(self._named(cells))
            if by is not None:
                self._done[by].add(row)
            self._changed.notify_all()

    def finish(self, task: str, rows: Iterable[int]) -> None:
        """The task is done with rows that it has taken, and writes nothing of them."""
        with self._changed:
            self._done[task].update(rows)

    def take(
        self,
        task: str,
        columns: Iterable[str],
        count: int,
        sampler: Sampler = in_order,
        *,
        timeout: float = 600.0,
    ) -> dict[int, dict[str, Any]]:
        """`count` rows with these columns that this task has not had. It has them until it is done with them
        (`write`, `finish`), and gets none of them again.

        Waits until there are so many. Raises Closed when nothing more comes, ShunterError after `timeout`
        seconds, and what another task failed with.
        """
        wanted = frozenset(columns)
        if unknown := wanted - self.columns:
            raise ShunterError(f"the store has no column {sorted(unknown)[0]!r}")
        taken: list[int] = []

        def there() -> bool:
            had = self._read[task]
            ready = sorted(n for n, cells in self._cells.items() if n not in had and wanted <= cells.keys())
            taken[:] = sampler(ready, count)
            return bool(taken)

        with self._changed:
            self._wait(there, timeout, f"give {task} {count} rows", until_closed=True)
            self._read[task].update(taken)
            return {row: {name: self._cells[row][name] for name in wanted} for row in taken}

    def clear(self, rows: Iterable[int]) -> None:
        """Forget rows, which makes room."""
        with self._changed:
            for row in rows:
                del self._cells[row]
                for task in self._read:
                    self._read[task].discard(row)
                    self._done[task].discard(row)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is inserted or written: whoever waits for more is told."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """A task has died: everybody who waits, or comes to, is told."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def state(self) -> dict[str, Any]:
        """Everything, as plain values if cells are. What a task has taken and not finished is not counted as
        read: who goes on from here gets it again."""
        with self._changed:
            return {
                "next": self._next,
                "cells": [[row, dict(cells)] for row, cells in sorted(self._cells.items())],
                "read": {task: sorted(rows) for task, rows in self._done.items()},
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        with self._changed:
            self._next = int(state["next"])
            self._cells = {int(row): dict(cells) for row, cells in state["cells"]}
            self._done = {task: set(rows) for task, rows in state["read"].items()}
            self._read = {task: set(rows) for task, rows in state["read"].items()}
            self._changed.notify_all()

    def _named(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := cells.keys() - self.columns:
            raise ShunterError(f"the store has no column {sorted(unknown)[0]!r}")
        return dict(cells)

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
