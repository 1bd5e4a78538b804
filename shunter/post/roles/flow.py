"""The controller: pools of workers, roles on them, calls that return at once (arXiv 2409.19256, section 4).

    with Flow({"main": 2}, folder) as flow:
        actor = flow.cast("actor", "actor", "main", Hybrid(d=2), model=..., ...)
        written = actor.generate(asked, step=0)       # a Future: where the answers will be
        actor.update(written, step=0).wait()

Calls reach every worker in the order in which they are made. A worker carries its calls out one after the
other, each once what it needs is there; so roles on one pool take turns, and pools work side by side. What
roles hand to each other goes from worker to worker: the controller sends and gets where it stands.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid
from shunter.post.roles import protocol
from shunter.post.roles.role import Role, class_of, protocol_of, settings_of
from shunter.post.roles.source import Part, Reach, parts_of, resolve, to_json


class Span(NamedTuple):
    """When a worker carried out a call, in seconds of the machine's clock, and bytes that came to it."""

    worker: int
    pool: str
    call: str
    begin: float
    end: float
    moved: int


@dataclass
class Count:
    """Bytes. control: of messages to and from workers. fetched: of results that the controller asked for."""

    control: int = 0
    fetched: int = 0


class Held:
    """Results that someone may still ask for; when nobody can, they are freed."""

    def __init__(self, keys: Sequence[Part], dropped: deque[Part]) -> None:
        self.keys, self._dropped = keys, dropped

    def __del__(self) -> None:
        self._dropped.extend(self.keys)


@dataclass
class Pending:
    """A call that is made. begun: by which workers it is not done yet. needs: what it reads."""

    name: str
    left: set[int]
    needs: list[Held]
    told: dict[int, dict[str, float]] = field(default_factory=dict)


class Backend(Protocol):
    """How workers are reached. `done` is called for each answer, from whatever thread."""

    count: Count

    def send(self, worker: int, message: dict[str, Any]) -> None:
        """Hand a message over."""

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Until `ready`. Raises ShunterError for a worker that failed, died, or is silent."""

    def reach(self) -> Reach:
        """Reads results."""

    def close(self) -> None:
        """End all workers."""


class Future:
    """A result that is there, or will be. source: where; a list for operations that answer with one."""

    def __init__(self, flow: Flow, source: Any, held: Held, pending: Pending) -> None:
        self.source = source
        self._flow, self._held, self._pending = flow, held, pending

    def done(self) -> bool:
        """Whether every worker has carried the call out."""
        return not self._pending.left

    def wait(self) -> Future:
        """Until it is done. Raises ShunterError, as `fetch` and `told` do, when that cannot be."""
        self._flow.wait(self)
        return self

    def fetch(self) -> Any:
        """The result itself, in this process; counted in `Flow.count.fetched`."""
        self.wait()
        return self._flow.fetch(self.source)

    def told(self) -> dict[str, float]:
        """What the first rank told of the call."""
        self.wait()
        told = self._pending.told
        return dict(told[min(told)]) if told else {}

    def told_in_all(self, name: str) -> float:
        """The sum over ranks of a number that they told."""
        self.wait()
        return sum(told.get(name, 0.0) for told in self._pending.told.values())


@dataclass(frozen=True)
class Pool:
    """Processes that no other pool has. workers: their numbers."""

    name: str
    workers: tuple[int, ...]


class Group:
    """A role on all ranks of a pool. Its operations are called as methods and return a Future."""

    def __init__(self, flow: Flow, name: str, kind: type[Role], pool: Pool, layout: Hybrid) -> None:
        self.name, self.kind, self.pool, self.layout = name, kind, pool, layout
        self._flow = flow

    def __getattr__(self, method: str) -> Callable[..., Future]:
        if method.startswith("_"):
            raise AttributeError(method)
        found = protocol.find(protocol_of(self.kind, method))

        def call(*given: Any, **named: Any) -> Future:
            return self._flow.call(self, method, found, given, named)

        return call


class Flow:
    """Pools and what is on them. Used as a context: at its end all workers end."""

    def __init__(
        self,
        pools: Mapping[str, int],
        folder: Path,
        *,
        backend: str = "processes",
        address: str = "",
        timeout: float = 600.0,
        threads: int = 1,
        exact: bool = False,
    ) -> None:
        """pools: name -> processes. folder: of files that roles write. backend: `processes` of this machine;
        `ray`, actors on a Ray cluster; or `inline`, everything in this process, each pool of one. address: of
        the Ray cluster, as `Cluster` has it. timeout: seconds without a word after which a worker is given
        up. exact: results are the same bits on pools of any size.

        Raises ShunterError for a pool without processes, or one that the backend cannot have."""
        if not pools or min(pools.values()) < 1:
            raise ShunterError("a pool has at least 1 process", where="pools")
        numbers = itertools.count()
        self.pools = {
            name: Pool(name, tuple(itertools.islice(numbers, size))) for name, size in pools.items()
        }
        self.pool_of = {worker: pool.name for pool in self.pools.values() for worker in pool.workers}
        self.groups: dict[str, Group] = {}
        self.spans: list[Span] = []
        self._ids = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._dropped: deque[Part] = deque()
        folder.mkdir(parents=True, exist_ok=True)
        # Imported here: each of them needs what stands above.
        if backend == "inline":
            from shunter.post.roles.inline import Inline

            self.backend: Backend = Inline(self.pools, folder, self._done, threads, exact)
        elif backend == "processes":
            from shunter.post.roles.processes import Processes

            self.backend = Processes(self.pools, folder, self._done, self.doing, timeout, threads, exact)
        elif backend == "ray":
            from shunter.post.roles.actors import Actors

            self.backend = Actors(
                self.pools, folder, self._done, self.doing, timeout, threads, exact, address
            )
        else:
            raise ShunterError(f"there is no backend {backend!r}", mend="Use processes, ray or inline.")

    @property
    def count(self) -> Count:
        """Bytes that passed through this process."""
        return self.backend.count

    @property
    def moved(self) -> int:
        """Bytes that went from worker to worker for calls that are done."""
        return sum(span.moved for span in self.spans)

    def cast(self, name: str, kind: str, pool: str, layout: Hybrid | None = None, **settings: Any) -> Group:
        """Put a role on a pool. kind: of shunter.post.roles.role.KINDS, or `module:Class`. layout: default:
        as many copies as the pool has processes. Raises ShunterError for what does not fit."""
        if pool not in self.pools:
            raise ShunterError(f"there is no pool {pool!r}", mend=f"There are {', '.join(self.pools)}.")
        if name in self.groups:
            raise ShunterError(f"there is a role {name!r} already")
        where = self.pools[pool]
        layout = layout or Hybrid(d=len(where.workers))
        if layout.size != len(where.workers):
            raise ShunterError(
                f"the layout of {name} has {layout.size} ranks, the pool {pool} {len(where.workers)} "
                "processes",
                mend="Let them agree.",
            )
        found = class_of(kind)
        group = self.groups[name] = Group(self, name, found, where, layout)
        message = {
            "do": "make",
            "role": name,
            "kind": kind,
            "layout": {axis: getattr(layout, axis) for axis in ("p", "t", "d", "pg", "tg")},
            "settings": settings_of(found, settings),
        }
        self._send(f"{name}: begin", {worker: message for worker in where.workers}, [])
        return group

    def call(
        self,
        group: Group,
        method: str,
        how: protocol.Protocol,
        given: Sequence[Any],
        named: Mapping[str, Any],
    ) -> Future:
        """Make a call; returns at once."""
        needs: list[Held] = []
        each = [list(how.distribute(group.layout, _sources(value, needs))) for value in given]
        ranks = list(how.ranks(group.layout))
        messages = {
            group.pool.workers[rank]: {
                "do": "call",
                "role": group.name,
                "method": method,
                "given": to_json([values[rank] for values in each]),
                "named": dict(named),
            }
            for rank in ranks
        }
        id, pending = self._send(f"{group.name}.{method}", messages, needs)
        parts = [
            Part(group.pool.workers[rank], id) if rank in ranks else None for rank in range(group.layout.size)
        ]
        held = Held([part for part in parts if part is not None], self._dropped)
        return Future(self, how.collect(group.layout, parts), held, pending)

    def _send(
        self, name: str, messages: Mapping[int, dict[str, Any]], needs: list[Held]
    ) -> tuple[int, Pending]:
        self._free()
        id = next(self._ids)
        pending = self._pending[id] = Pending(name, set(messages), needs)
        for worker, message in messages.items():
            self.backend.send(worker, {**message, "id": id})
        return id, pending

    def _free(self) -> None:
        """Tell workers what nobody will ask for; before a call, so not from a thread that frees memory."""
        keys: dict[int, list[int]] = {}
        while self._dropped:
            part = self._dropped.popleft()
            keys.setdefault(part.worker, []).append(part.key)
        for worker, each in keys.items():
            self.backend.send(worker, {"do": "free", "keys": each})

    def _done(self, worker: int, answer: Mapping[str, Any]) -> None:
        pending = self._pending[answer["done"]]
        pending.told[worker] = answer["told"]
        times = (answer["begin"], answer["end"], answer["moved"])
        self.spans.append(Span(worker, self.pool_of[worker], pending.name, *times))
        pending.left.discard(worker)
        if not pending.left:
            pending.needs = []
            del self._pending[answer["done"]]

    def doing(self, worker: int) -> str:
        """The oldest call that a worker has not carried out yet."""
        return next((it.name for it in list(self._pending.values()) if worker in it.left), "no call")

    def wait(self, future: Future | None = None) -> None:
        """Until a future, or every call, is done."""
        if future is None:
            self.backend.wait(lambda: not self._pending, "all calls")
        else:
            self.backend.wait(future.done, future._pending.name)

    def fetch(self, source: Any) -> Any:
        """What a source names."""
        return resolve(source, self.backend.reach())

    def close(self) -> None:
        """End all workers."""
        self.backend.close()

    def __enter__(self) -> Flow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sources(value: Any, needs: list[Held]) -> Any:
    """Futures as what they name; what they hold stays until the call is done."""
    if isinstance(value, Future):
        needs.append(value._held)
        return value.source
    if isinstance(value, list | tuple):
        return [_sources(each, needs) for each in value]
    if any(True for _ in parts_of(value)):
        raise ShunterError("give the Future of a call, not its source: it keeps the result alive")
    return value
