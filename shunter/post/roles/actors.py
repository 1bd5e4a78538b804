"""Workers as actors on a Ray cluster: pools are placement groups. One that ends or fails ends all, and is
named.

Messages and results are the frames of `wire`, so nothing that a role hands on is pickled; Ray carries them
as bytes. A result stays with the worker that made it. Who needs rows of it asks that worker, and they go
from one to the other through Ray's object stores; the controller gets where they stand.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from shunter.config.errors import ShunterError
from shunter.launch import route
from shunter.launch.ray_cluster import Cluster, reason_of, this_node
from shunter.parallel.mesh import Peers, ProcessGroups
from shunter.post.roles import wire
from shunter.post.roles.host import Host, describe
from shunter.post.roles.overseer import RERUN, Overseer
from shunter.post.roles.shelf import Reader, Shelf, lost
from shunter.post.roles.source import Extent, Part

if TYPE_CHECKING:
    from shunter.post.roles.flow import Pool

START = 300.0  # seconds in which all actors have room and have begun
PARTING = 10.0  # seconds in which actors that are killed are gone
HANDING = "handing"  # the threads of an actor that hand results out while its own thread computes


class Seat:
    """One worker. Its messages are carried out one after the other; results are handed out meanwhile."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._shelf = Shelf(0.0)
        self._host: Host | None = None

    def where(self) -> dict[str, Any]:
        """Process and node; of a pool's first rank, the place where the others meet it."""
        here = this_node()
        family = socket.AF_INET6 if ":" in here.name else socket.AF_INET
        self._listener = socket.create_server((here.name, 0), family=family)
        port = self._listener.getsockname()[1]
        return {"pid": os.getpid(), "node": here.name, "id": here.id, "port": port}

    def begin(
        self, request: Mapping[str, Any], meeting: tuple[str, int], seats: Mapping[int, Any]
    ) -> dict[str, Any] | None:
        """request: as a process gets it. meeting: node and port of the pool's first rank. seats: all actors,
        by their worker's number. Returns a failure, as `do` has it."""
        torch.set_num_threads(request["threads"])
        torch.use_deterministic_algorithms(request["exact"])
        self._shelf = Shelf(request["timeout"])
        reader = _Reader({request["number"]: self._shelf}, seats, request["timeout"])
        try:
            peers = self._meet(request, meeting)
        except Exception as error:
            return {"failed": -1, **describe(error)}
        groups = ProcessGroups(timeout=timedelta(seconds=request["timeout"]))
        work = Path(request["work"])
        self._host = Host(request["rank"], peers, groups, self._shelf, reader, work, request["exact"])
        return None

    def _meet(self, request: Mapping[str, Any], meeting: tuple[str, int]) -> Peers:
        rank, size = request["rank"], request["size"]
        assert self._listener is not None
        if size == 1 or rank > 0:
            self._listener.close()
        if size == 1:
            return Peers.alone()
        # On the address by which the nodes know each other, and on no other.
        if name := route.interface_of(this_node().name):
            os.environ["GLOO_SOCKET_IFNAME"] = name
        wait = timedelta(seconds=min(START, request["timeout"]))
        own = self._listener.detach() if rank == 0 else None
        store = TCPStore(*meeting, size, rank == 0, wait, wait_for_workers=False, master_listen_fd=own)
        wait = timedelta(seconds=request["timeout"])
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
        return Peers(dist.group.WORLD, tuple(range(size)), rank)

    def do(self, header: bytes) -> bytes | None:
        """Carry a message out; the answer's header."""
        assert self._host is not None
        answer = self._host.do(wire.decode(header, b""))
        return None if answer is None else wire.encode(answer)[0]

    def hand_out(self, key: int, begin: int | None, end: int | None) -> list[Any]:
        """The extent of a result, then a frame of it; begin -1: the extent alone. Waits until it is there."""
        rows, unit = self._shelf.extent(key)
        if begin is not None and begin < 0:
            return [rows, unit]
        header, body = wire.encode(self._shelf.read(key, begin, end))
        return [rows, unit, header, b"".join(body)]


class _Reader(Reader):
    """Asks actors for their results."""

    def __init__(self, own: Mapping[int, Shelf], seats: Mapping[int, Any], timeout: float) -> None:
        super().__init__(own, {}, timeout)
        self._seats = seats

    def extent(self, part: Part) -> Extent:
        if part.worker in self.own:
            return self.own[part.worker].extent(part.key)
        return Extent(*self._ask(part, -1, -1))

    def read(self, part: Part, begin: int | None = None, end: int | None = None) -> Any:
        if part.worker in self.own:
            return self.own[part.worker].read(part.key, begin, end)
        _, _, header, body = self._ask(part, begin, end)
        self.moved += wire.size_of(header, len(body))
        return wire.decode(header, bytearray(body))  # torch wants arrays that could be written

    def _ask(self, part: Part, begin: int | None, end: int | None) -> list[Any]:
        import ray

        call = self._seats[part.worker].hand_out.options(concurrency_group=HANDING)
        try:
            # One who waits for a result that a lost worker owes is ended by the controller long before.
            told: list[Any] = ray.get(call.remote(part.key, begin, end), timeout=self.timeout + 5)
        except ray.exceptions.RayError as error:
            raise lost(part, RuntimeError(reason_of(error))) from None
        self.moved += wire.size_of(wire.encode(told[:2])[0])
        return told


class Actors(Overseer):
    """An actor for each worker, a placement group for each pool."""

    patience = 5.0  # the end of an actor is told by way of the cluster's head

    def __init__(
        self,
        pools: Mapping[str, Pool],
        work: Path,
        done: Callable[[int, Mapping[str, Any]], None],
        doing: Callable[[int], str],
        timeout: float,
        threads: int,
        exact: bool,
        address: str = "",
    ) -> None:
        """Each process has as many of its node's CPUs to itself as it has threads. Raises ShunterError for a
        cluster that has no room for a pool, or a node that does not see the folder `work`."""
        super().__init__(done, doing, timeout)
        self._seats: dict[int, Any] = {}
        self._told_of: dict[int, dict[str, Any]] = {}
        self._groups: list[Any] = []
        count = sum(len(pool.workers) for pool in pools.values())
        self._cluster = Cluster(address, count * threads)
        self._cluster.__enter__()
        try:
            self._cluster.sees(work)
            self._reserve(pools, threads)
            for pool, group in zip(pools.values(), self._groups, strict=True):
                for rank, worker in enumerate(pool.workers):
                    self._names[worker] = f"rank {rank} of the pool {pool.name}"
                    self._seats[worker] = _seat(group, rank, threads, count)
            asked = {worker: seat.where.remote() for worker, seat in self._seats.items()}
            self._told_of = self._all(asked, "begin")
            asked = {}
            for pool in pools.values():
                first = self._told_of[pool.workers[0]]
                for rank, worker in enumerate(pool.workers):
                    request = {
                        "number": worker, "rank": rank, "size": len(pool.workers),
                        "work": str(work.absolute()), "timeout": timeout, "threads": threads, "exact": exact,
                    }  # fmt: skip
                    meeting = (first["node"], first["port"])
                    asked[worker] = self._seats[worker].begin.remote(request, meeting, self._seats)
            for worker, failure in self._all(asked, "meet").items():
                if failure is not None:
                    raise self._told({**failure, "worker": worker})
        except BaseException:
            self.close()
            raise
        self._reader = _Reader({}, self._seats, timeout)

    def _reserve(self, pools: Mapping[str, Pool], threads: int) -> None:
        import ray
        from ray.util.placement_group import placement_group

        wanted, there = sum(len(pool.workers) for pool in pools.values()) * threads, self._cluster.cpus
        if wanted > there:
            raise ShunterError(
                f"the pools want {wanted} CPUs, and the Ray cluster has {there}",
                mend="Give it fewer processes or threads, or add nodes.",
            )
        for pool in pools.values():
            bundles = [{"CPU": threads} for _ in pool.workers]
            self._groups.append(placement_group(bundles, strategy="PACK"))
        refs = {group.ready(): name for name, group in zip(pools, self._groups, strict=True)}
        _, late = ray.wait(list(refs), num_returns=len(refs), timeout=START)
        for ref in late:
            size = len(pools[refs[ref]].workers)
            raise ShunterError(
                f"the pool {refs[ref]} of {size} processes found no room on the Ray cluster in {START:g} s",
                mend="Others use its CPUs, or no node has the threads of one process: look at `ray status`.",
            )

    def _all(self, asked: Mapping[int, Any], what: str) -> dict[int, Any]:
        """What every actor answers. Raises ShunterError for one that does not."""
        import ray

        _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=START)
        found = {}
        for worker, ref in asked.items():
            if ref in late:
                raise ShunterError(f"{self._names[worker]} did not {what} within {START:g} s")
            try:
                found[worker] = ray.get(ref)
            except ray.exceptions.RayError as error:
                raise ShunterError(f"{self._names[worker]} did not {what} ({reason_of(error)})") from None
        return found

    def _hand(self, worker: int, message: dict[str, Any]) -> int:
        header, _ = wire.encode(message)
        ref = self._seats[worker].do.remote(header)
        if "id" in message:  # others are not answered
            ref.future().add_done_callback(partial(self._answered, worker))
        return wire.size_of(header)

    def _answered(self, worker: int, future: Future[Any]) -> None:
        import ray

        try:
            header = future.result()
        except ray.exceptions.RayTaskError as error:
            # A role's errors are told in an answer; this one is of what is around it.
            failure = {"user": False, "lost": False, "what": reason_of(error), "traceback": str(error)}
            self.hear(worker, {"failed": -1, **failure}, 0)
        except BaseException as error:
            self.hear(worker, {"failed": -1, "ended": True, "how": str(error)}, 0)
        else:
            self.hear(worker, wire.decode(header, b""), wire.size_of(header))

    def _killed(self) -> int | None:
        return next((it["worker"] for it in list(self._failures) if it.get("ended")), None)

    def _ended(self, worker: int) -> Exception:
        told = self._told_of[worker]
        how = next(str(it["how"]) for it in self._failures if it.get("ended") and it["worker"] == worker)
        there: set[str] = set()
        with suppress(Exception):  # where the head is lost, so is what it knew
            there = {node.id for node in self._cluster.nodes()}
        end = f"died {self._at(worker)}"
        if "node has died" in how or told["id"] not in there:
            end += ", with its node"
        elif "process has died" not in how:  # then its node has said so
            end = f"is not reached any more {self._at(worker)}: its node, or the way to it, is lost"
        return ShunterError(
            f"{self._names[worker]} (process {told['pid']} on {told['node']}) {end}", mend=RERUN
        )

    def close(self) -> None:
        """Kill all actors and give their room back. Nothing of them is left, as far as nodes answer."""
        import ray
        from ray.util.placement_group import remove_placement_group

        self._closing = True
        for seat in self._seats.values():
            with suppress(Exception):  # it may be dead, or the cluster
                ray.kill(seat)
        until = time.monotonic() + PARTING
        for seat in self._seats.values():
            # An actor that is gone says so of every call.
            with suppress(Exception):
                ray.get(seat.where.remote(), timeout=max(0.1, until - time.monotonic()))
        for group in self._groups:
            with suppress(Exception):
                remove_placement_group(group)
        self._seats, self._groups = {}, []
        self._cluster.__exit__(None, None, None)


def _seat(group: Any, rank: int, threads: int, count: int) -> Any:
    """A new actor on its place in a placement group."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    # As many may wait at once for a result that is not there yet, and the controller.
    kind = ray.remote(
        num_cpus=threads, max_restarts=0, max_task_retries=0, concurrency_groups={HANDING: count + 1}
    )(Seat)
    return kind.options(scheduling_strategy=place).remote()
