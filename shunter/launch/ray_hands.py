"""Tasks of independent chunks on a Ray cluster: each once, some at a time, and again when a node is lost.

A task is a function that can be sent, as processes of this machine get it; its result is what it writes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch.ray_cluster import Cluster, Sight, reason_of, this_node

RETRIES = 3  # workers or nodes that may be lost over one task: what is lost with it each time has a cause
LOOK = 1.0  # seconds between two looks whether there is a node left
PARTING = 30.0  # seconds in which tasks end that are told to, before their processes are ended
Task = Callable[[], Any]


class RayHands:
    """Carries out what a chain's runner gives it. sight: what every node must see before it begins."""

    def __init__(self, cluster: Cluster, sight: Sight) -> None:
        import ray

        self._cluster, self._sight = cluster, sight
        # Retried here and not by Ray, which knows no bound for those that a lack of memory ends.
        self._remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(work)
        self._begun: dict[Any, int] = {}  # what Ray calls a task -> its number
        self._tasks: dict[int, Task] = {}
        self._lost: dict[int, int] = {}
        self._ended: dict[int, BaseException | None] = {}

    def __enter__(self) -> RayHands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of this is written any more when it returns, as far as nodes answer."""
        import ray

        for force in (False, True):
            if not self._begun:
                return
            for ref in self._begun:
                ray.cancel(ref, force=force)
            _, left = ray.wait(list(self._begun), num_returns=len(self._begun), timeout=PARTING)
            self._begun = {ref: self._begun[ref] for ref in left}

    def do(self, waiting: Sequence[tuple[int, Task | None]]) -> None:
        """Have the first done, and the others begun. What is lost with its worker or node is done again.

        Raises what the task raises; ShunterError where it is lost again and again, or no node is left."""
        number, task = waiting[0]
        for other, each in waiting:
            if each is not None and other not in self._tasks:
                self._tasks[other] = each
                self._begin(other)
        if task is None:
            return
        while number not in self._ended:
            self._look()
        error = self._ended.pop(number)
        del self._tasks[number]
        if error is not None:
            raise error

    def _begin(self, number: int) -> None:
        self._begun[self._remote.remote(self._tasks[number], self._sight)] = number

    def _look(self) -> None:
        import ray

        done, _ = ray.wait(list(self._begun), num_returns=1, timeout=LOOK)
        if not done and not self._cluster.nodes():
            raise ShunterError(
                "no node of the Ray cluster is left to work on",
                mend="Bring nodes back, and run the same command again: it goes on.",
            )
        for ref in done:
            number = self._begun.pop(ref)
            try:
                ray.get(ref)
            except ray.exceptions.RayTaskError as error:  # the task's own
                self._ended[number] = error.cause
            except ray.exceptions.RayError as error:
                self._again(number, error)
            else:
                self._ended[number] = None

    def _again(self, number: int, error: Exception) -> None:
        lost = self._lost[number] = self._lost.get(number, 0) + 1
        if lost <= RETRIES:
            self._begin(number)
            return
        self._ended[number] = ShunterError(
            f"the workers of chunk {number} on the Ray cluster were lost {lost} times; the last: "
            f"{reason_of(error)}",
            mend="Look for a lack of memory on the nodes; smaller `how.chunk_chars` need less. "
            "A rerun goes on.",
        )


def work(task: Task, sight: Sight) -> None:
    """On a node: one task. Raises ShunterError where the node does not see what it needs."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()  # what is loaded is not looked through after every chunk
    if not sight.there():
        raise sight.hidden(this_node().name)
    try:
        task()
    except FileNotFoundError as error:
        raise ShunterError(
            f"the node {this_node().name} of the Ray cluster does not see {error.filename}",
            mend="Put what operators read on a file system that all nodes share, under one path.",
        ) from None
    finally:
        gc.collect()  # whatever arrays an operator has made and not let go
