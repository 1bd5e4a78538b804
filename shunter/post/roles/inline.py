"""All roles in the controller's own process: to look at an algorithm step by step, and for one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Peers, ProcessGroups
from shunter.post.roles.host import Host
from shunter.post.roles.shelf import Reader, Shelf
from shunter.post.roles.source import Reach

if TYPE_CHECKING:
    from shunter.post.roles.flow import Count, Pool


class Inline:
    """A call is carried out when it is made: pools take turns, and nothing is copied."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        folder: Path,
        done: Callable[[int, Mapping[str, Any]], None],
        threads: int,
        exact: bool,
    ) -> None:
        """Raises ShunterError for a pool of more than one process."""
        from shunter.post.roles.flow import Count

        self.count: Count = Count()
        self._done = done
        shelves = {worker: Shelf(0.0) for pool in pools.values() for worker in pool.workers}
        self._reader = Reader(shelves, {}, 0.0)
        self._hosts = {}
        for pool in pools.values():
            if len(pool.workers) > 1:
                raise ShunterError(
                    f"inline, the pool {pool.name} of {len(pool.workers)} has no other process to be in",
                    mend="Use pools of 1, or the backend processes.",
                )
            (worker,) = pool.workers
            self._hosts[worker] = Host(
                0, Peers.alone(), ProcessGroups(), shelves[worker], self._reader, folder, exact
            )
        # As workers have it, until `close`.
        self._before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact or self._before[1])

    def send(self, worker: int, message: dict[str, Any]) -> None:
        """Carry it out. Raises what the role raises."""
        answer = self._hosts[worker].do(message, own=True)
        if answer is not None:
            self._done(worker, answer)

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        assert ready(), what

    def reach(self) -> Reach:
        return self._reader

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        torch.set_num_threads(self._before[0])
        torch.use_deterministic_algorithms(self._before[1])
