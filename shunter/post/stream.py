"""Tasks of reinforcement learning side by side, over a store of samples, with weights up to a step old.

After AsyncFlow (arXiv 2507.01663, section 4). Three ways to run the same tasks:
sequential  each task does the whole batch, then the next one begins
queue       tasks take rows as they become ready; writing step k waits for the weights of step k
delayed     writing step k may use weights that are up to `staleness` steps older, and takes newer ones
            between two rows, never inside one
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shunter.config.errors import ShunterError
from shunter.post.samplers import Sampler, by_group, in_order
from shunter.post.store import Closed, SampleStore

Mode = Literal["sequential", "queue", "delayed"]
Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What is done to rows that are written: from the cells `reads` of `batch` rows, the cells `writes`."""

    name: str
    reads: Sequence[str]
    writes: Sequence[str]
    work: Callable[[Sequence[Cells]], Sequence[Cells]]
    batch: int = 1


@dataclass
class Told:
    """What a run was like. busy: seconds of each task's work. staleness: of each row, steps. order: events as
    (seconds, task, event, step or row)."""

    seconds: float = 0.0
    rows: int = 0
    busy: dict[str, float] = field(default_factory=dict)
    staleness: list[int] = field(default_factory=list)
    most_live: int = 0
    order: list[tuple[float, str, str, int]] = field(default_factory=list)

    def idle(self, workers: Mapping[str, int]) -> float:
        """The share of all workers' time in which they had nothing to do."""
        whole = self.seconds * sum(workers.values())
        return 1.0 - sum(self.busy.values()) / whole if whole else 0.0


class Versions:
    """The newest weights, and who may use which. A rollout worker loads them between two rows."""

    def __init__(self, staleness: int) -> None:
        self.staleness = staleness
        self.newest = 0
        self._changed = threading.Condition()
        self._failed = False

    def publish(self, version: int) -> None:
        """Weights after `version` steps are there."""
        with self._changed:
            self.newest = version
            self._changed.notify_all()

    def fail(self) -> None:
        """Whoever waits shall not."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def wait(self, step: int, timeout: float) -> int:
        """The newest version, once it may write rows for `step`. Raises ShunterError after `timeout` s."""
        with self._changed:
            fits = self._changed.wait_for(
                lambda: self._failed or self.newest >= step - self.staleness, timeout
            )
            if self._failed or not fits:
                raise ShunterError(f"no weights came that may write step {step}")
            return self.newest


def run(
    mode: Mode,
    steps: int,
    rows: int,
    rollout: Callable[[int, int, int], Cells],
    tasks: Sequence[Task],
    update: Callable[[int, Sequence[Cells]], None],
    *,
    workers: int = 1,
    update_reads: Sequence[str] = (),
    update_batch: int = 1,
    send: Callable[[int], None] = lambda version: None,
    staleness: int = 1,
    timeout: float = 600.0,
    group: int = 1,
    keep: Callable[[Mapping[str, Any]], None] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Told:
    """`steps` steps of `rows` rows. rollout(step, number, version) writes a row, `workers` of them at a time;
    update(step, rows) learns from `update_batch` rows; send(version) brings new weights to the writers.

    In the modes but `delayed`, the staleness is 0. Each row is written, read by each task, and learnt from
    exactly once. group: so many rows with numbers that follow each other are learnt from together, whatever
    the order in which they are finished. Raises ShunterError when a task fails or is silent for too long, and
    what it raised is its cause.

    keep: is given what to go on from, after each step; who keeps it together with the weights of that moment
    and gives it back as `kept` after a crash loses no row that was written by then, and learns from none
    twice. `update_batch` and `rows` must be multiples of `group`.
    """
    if rows % group or update_batch % group:
        raise ValueError(f"{rows} rows in parts of {update_batch} are no whole groups of {group}")
    columns = {"step", "number", "version", "group", *update_reads, *(c for t in tasks for c in t.writes)}
    columns |= {c for t in tasks for c in t.reads}
    store = SampleStore(columns, [*(task.name for task in tasks), "update"], capacity=rows * (staleness + 2))
    state = _State(store, Versions(staleness if mode == "delayed" else 0), Told(), timeout, group, keep)
    first = 0
    if kept is not None:
        first = int(kept["step"])
        store.restore(kept["store"])
        state.versions.newest = first
    begin = time.perf_counter()
    state.begin = begin
    plan = range(first, steps), rows
    if mode == "sequential":
        _in_turns(state, *plan, rollout, tasks, update, workers, update_reads, update_batch, send)
    else:
        _streamed(state, *plan, rollout, tasks, update, workers, update_reads, update_batch, send)
    state.told.seconds = time.perf_counter() - begin
    state.told.rows, state.told.most_live = len(plan[0]) * rows, store.most_live
    return state.told


@dataclass
class _State:
    store: SampleStore
    versions: Versions
    told: Told
    timeout: float
    group: int = 1
    keep: Callable[[Mapping[str, Any]], None] | None = None
    begin: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_work: dict[int, tuple[str, float]] = field(default_factory=dict)  # thread -> task, since when

    def timed(self, name: str, event: str, at: int, work: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        with self.lock:
            self.at_work[threading.get_ident()] = name, start
        result = work(*given)
        end = time.perf_counter()
        with self.lock:
            del self.at_work[threading.get_ident()]
            self.told.busy[name] = self.told.busy.get(name, 0.0) + end - start
            self.told.order.append((start - self.begin, name, f"{event} begins", at))
            self.told.order.append((end - self.begin, name, f"{event} ends", at))
        return result

    def threads(self, works: Sequence[Callable[[], None]]) -> None:
        """Run all side by side; the first that fails stops the others and is raised."""

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                self.store.fail(error)
                self.versions.fail()

        running = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
        for thread in running:
            thread.start()
        for thread in running:
            # One that is stuck is left behind: it is a daemon and ends with us.
            while thread.is_alive() and self.store._failure is None:
                thread.join(0.05)
                self._look()
        if self.store._failure is not None:
            failure = self.store._failure
            raise (
                failure
                if isinstance(failure, ShunterError)
                else ShunterError(f"a task failed ({type(failure).__name__}: {failure})")
            ) from failure

    def _look(self) -> None:
        """Fail when a task is silent for too long."""
        with self.lock:
            late = [
                name for name, since in self.at_work.values() if time.perf_counter() - since > self.timeout
            ]
        if late:
            self.store.fail(ShunterError(f"the task {late[0]} was silent for {self.timeout:g} s"))
            self.versions.fail()

    def note(self, step: int, version: int) -> None:
        with self.lock:
            self.told.staleness.append(step - version)


def _writers(
    state: _State, step_rows: Sequence[tuple[int, int]], rollout: Any, workers: int
) -> list[Callable[[], None]]:
    """Workers that share out rows (step, number) in order."""
    waiting = iter(step_rows)

    def write() -> None:
        while True:
            with state.lock:
                item = next(waiting, None)
            if item is None:
                return
            step, number = item
            version = state.versions.wait(step, state.timeout)
            cells = state.timed("rollout", "row", number, rollout, step, number, version)
            state.note(step, version)
            row = {"step": step, "number": number, "version": version, "group": number // state.group}
            state.store.insert([{**row, **cells}], timeout=state.timeout)

    return [write] * workers


def _serve(state: _State, task: Task, total: int) -> Callable[[], None]:
    def work() -> None:
        done = 0
        while done < total:
            count = min(task.batch, total - done)
            try:
                taken = state.store.take(task.name, task.reads, count, timeout=state.timeout)
            except Closed:
                return
            cells = state.timed(task.name, "batch", min(taken), task.work, list(taken.values()))
            state.store.done(task.name, dict(zip(taken, cells, strict=True)))
            done += count

    return work


def _learn(
    state: _State, steps: Sequence[int], rows: int, update: Any, reads: Sequence[str], batch: int, send: Any
) -> Callable[[], None]:
    def work() -> None:
        for step in steps:
            had: list[int] = []
            while len(had) < rows:
                count = min(batch, rows - len(had))
                # A step learns from its own rows alone, in whatever order they become ready.
                taken = state.store.take(
                    "update",
                    ["step", "group", *reads],
                    count,
                    _of_step(step, state.group),
                    timeout=state.timeout,
                )
                state.timed("update", "batch", step, update, step, list(taken.values()))
                had += taken
            state.store.clear(had)
            state.timed("send", "weights", step + 1, send, step + 1)
            state.versions.publish(step + 1)
            if state.keep is not None:
                state.keep({"step": step + 1, "store": state.store.state()})

    return work


def _of_step(step: int, group: int) -> Sampler:
    whole = by_group(group) if group > 1 else in_order

    def take(ready: Mapping[int, Cells], count: int) -> Sequence[int]:
        return whole({row: cells for row, cells in ready.items() if cells["step"] == step}, count)

    return take


def _missing(state: _State, steps: Iterable[int], rows: int) -> list[tuple[int, int]]:
    """The rows (step, number) that are not written yet."""
    there = {(cells["step"], cells["number"]) for cells in state.store.rows()}
    return [(step, number) for step in steps for number in range(rows) if (step, number) not in there]


def _left(state: _State, task: Task, total: int) -> int:
    """How many of so many rows the task has not had."""
    return total - len(state.store.had(task.name))


def _streamed(
    state: _State, steps: range, rows: int, rollout: Any, tasks: Sequence[Task], update: Any,
    workers: int, reads: Sequence[str], batch: int, send: Any,
) -> None:  # fmt: skip
    works = _writers(state, _missing(state, steps, rows), rollout, workers)
    works += [_serve(state, task, _left(state, task, len(steps) * rows)) for task in tasks]
    works.append(_learn(state, steps, rows, update, reads, batch, send))
    state.threads(works)


def _in_turns(
    state: _State, steps: range, rows: int, rollout: Any, tasks: Sequence[Task], update: Any,
    workers: int, reads: Sequence[str], batch: int, send: Any,
) -> None:  # fmt: skip
    for step in steps:
        state.threads(_writers(state, _missing(state, [step], rows), rollout, workers))
        for task in tasks:
            state.threads([_serve(state, task, _left(state, task, rows))])
        state.threads([_learn(state, [step], rows, update, reads, batch, send)])
