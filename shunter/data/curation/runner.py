"""Runs a chain over a corpus: chunk by chunk and stage by stage, each done once whatever is killed.

A chunk is some consecutive documents. What a stage makes of a chunk is written aside, brought to the disk and
renamed, its record last; a later attempt does what has no record. Row-wise operators hold one chunk a worker,
and this process two more for each; barriers hold what `memory` lets them of their keys, which lie on disk.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from shunter.config.errors import ShunterError
from shunter.data.curation.chain import SAMPLES, Documents, Stage, Tally, run, stages
from shunter.data.curation.operators import Keys, Operator
from shunter.data.curation.room import MB, Columns, Room
from shunter.recipe import disk

MEMORY = 256  # MB that a barrier may hold
SIGHT = 60.0  # seconds that a file may take from the machine that wrote it to this one
RETRIES = 3  # pools that may break before the job ends: a worker that is killed again and again has a cause
Watch = Callable[[int, "Done"], None]
Task = Callable[[], Any]  # what is done of a chunk; it can be sent to a worker
Waiting = Sequence[tuple[int, Task | None]]  # numbers of chunks, each with what is to do; None: it is done


class Hands(Protocol):
    """What carries out the tasks of one stage. Left with an error, it begins nothing more."""

    def __enter__(self) -> Hands: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def do(self, waiting: Waiting) -> None:
        """Have the first done, and the others begun. A worker that dies is replaced, some times."""


@dataclass(frozen=True)
class Done:
    """The record of one stage of one chunk."""

    documents: int  # that are left
    dropped: list[dict[str, Any]]
    tallies: list[Tally]
    samples: list[dict[str, Any]]
    fresh: bool = True  # done in this attempt


class Runner:
    """One chain in one folder, which survives a kill.

    watch(stage, done) is called in this process for every chunk that is done, also one done before; it may
    raise to stop, and nothing that is done is lost. begins(stage) is called before a stage's first chunk.
    memory: MB that a barrier may hold. hands: makes what carries tasks out, so many at once; default:
    processes of this machine.
    """

    def __init__(
        self,
        folder: Path,
        operators: Sequence[Operator],
        workers: int,
        watch: Watch,
        excluded: bool = False,
        begins: Callable[[int], None] = lambda stage: None,
        memory: int = MEMORY,
        hands: Callable[[int], Hands] | None = None,
    ) -> None:
        self.folder, self.workers, self.watch = folder, workers, watch
        self.begins, self.memory = begins, memory
        self.hands: Callable[[int], Hands] = hands or _Hands
        self.stages = stages(operators, excluded)
        self.chunks = 0
        for number in range(len(self.stages)):
            (folder / str(number)).mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*/*"):
            # Of a worker that was killed while it wrote, or of a settlement, which is done anew.
            if path.suffix[1:].isdigit() or path.name.startswith("settled."):
                path.unlink(missing_ok=True)

    def run(self, chunks: Iterable[Documents]) -> None:
        """All stages. The chunks must be cut alike in every attempt."""
        first = self.stages[0]

        def begin() -> Iterator[tuple[int, Task]]:
            for number, documents in enumerate(chunks):
                self.chunks = number + 1
                yield number, partial(start, self.folder, first, number, documents)

        self._all(0, begin())
        for place in range(1, len(self.stages)):
            self._further(place)  # what is settled goes before the next is

    def _further(self, place: int) -> None:
        """One stage after the first."""
        settled = self._settle(place - 1)
        tasks = (
            (number, partial(go_on, self.folder, self.stages[place], place, number, part))
            for number, part in enumerate(self._cut(place - 1, settled))
        )
        self._all(place, tasks)

    def done(self, stage: int) -> Iterator[Done]:
        """The records of a stage, chunk by chunk."""
        for number in range(self.chunks):
            yield _record(self.folder, stage, number)

    def left(self) -> Iterator[Documents]:
        """What the last stage left, chunk by chunk."""
        for number in range(self.chunks):
            yield load(_place(self.folder, len(self.stages) - 1, number))

    def dropped(self, stage: int) -> Iterator[dict[str, Any]]:
        """Records of removal of one stage, by rising number of the document."""
        for done in self.done(stage):
            yield from done.dropped

    def tallies(self) -> list[tuple[str, Tally]]:
        """Name and counts of every operator, in the chain's order."""
        found = []
        for number, stage in enumerate(self.stages):
            total = [Tally() for _ in stage.names]
            for done in self.done(number):
                for tally, part in zip(total, done.tallies, strict=True):
                    tally.add(part)
            found += list(zip(stage.names, total, strict=True))
        return found

    def samples(self) -> list[dict[str, Any]]:
        """The first few documents removed for each reason, with the beginning of their text."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for number in range(len(self.stages)):
            for done in self.done(number):
                for sample in done.samples:
                    same = found.setdefault((sample["operator"], sample["reason"]), [])
                    same.append(sample)
                    same.sort(key=lambda each: int(each["number"]))
                    del same[SAMPLES:]
        return [sample for key in sorted(found) for sample in found[key]]

    def _settle(self, stage: int) -> Keys:
        """What the barrier at a stage's end settles."""
        barrier = self.stages[stage].closes
        assert barrier is not None
        place = self.folder / str(stage)
        return barrier.settle(Columns(place, self.chunks, Room(place, self.memory * MB)))

    def _cut(self, stage: int, settled: Keys) -> Iterator[Keys]:
        """A part of it for each chunk, copied: it is sent to a worker, and may lie in a file."""
        document = row = 0
        for done in self.done(stage):
            documents = slice(document, document + done.documents)
            part = {name: np.array(values[documents]) for name, values in settled.items() if name == "rows"}
            rows = slice(row, row + int(part["rows"].sum())) if part else documents
            part |= {name: np.array(values[rows]) for name, values in settled.items() if name != "rows"}
            yield part
            document, row = documents.stop, rows.stop

    def _all(self, stage: int, tasks: Iterator[tuple[int, Task]]) -> None:
        """Do what is not done yet, some at a time, and tell of each in order."""
        waiting: deque[tuple[int, Task | None]] = deque()
        more = True
        self.begins(stage)
        with self.hands(self.workers) as hands:
            while more or waiting:
                while more and len(waiting) < 2 * self.workers:
                    number, task = next(tasks, (-1, None))
                    more = task is not None
                    if task is not None:
                        finished = _place(self.folder, stage, number).with_suffix(".json").exists()
                        waiting.append((number, None if finished else task))
                if not waiting:
                    break
                hands.do(waiting)
                number, task = waiting.popleft()
                _await(_place(self.folder, stage, number).with_suffix(".json"))
                self.watch(stage, replace(_record(self.folder, stage, number), fresh=task is not None))


class _Hands:
    """Worker processes, from the moment on when there are two things to do at once; before that, this one.

    Left with an error, they finish what they have in hand and begin nothing more.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.broken = workers, 0
        self.pool: ProcessPoolExecutor | None = None
        self.futures: dict[int, Future[Any]] = {}

    def __enter__(self) -> _Hands:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def do(self, waiting: Waiting) -> None:
        number, task = waiting[0]
        if task is None:
            return
        if self.pool is None and (self.workers == 1 or sum(each is not None for _, each in waiting) < 2):
            task()
            return
        while True:
            try:
                if self.pool is None:
                    self.pool = _pool(self.workers)
                for other, each in waiting:
                    if each is not None and other not in self.futures:
                        self.futures[other] = self.pool.submit(each)
                self.futures.pop(number).result()
                return
            except BrokenProcessPool:
                self.broken += 1
                if self.broken > RETRIES:
                    raise ShunterError(
                        f"worker processes were killed {self.broken} times",
                        mend="Look for a lack of memory; fewer `how.workers` need less. A rerun goes on.",
                    ) from None
                self.futures.clear()
                assert self.pool is not None
                self.pool.shutdown(wait=True)
                self.pool = None


def start(folder: Path, stage: Stage, number: int, documents: Documents) -> None:
    """The first stage of a chunk. Runs in a worker."""
    _keep(folder, 0, number, stage, documents, None)


def go_on(folder: Path, stage: Stage, place: int, number: int, settled: Keys) -> None:
    """A later stage of a chunk. Runs in a worker."""
    _keep(folder, place, number, stage, load(_place(folder, place - 1, number)), settled)


def load(path: Path) -> Documents:
    """Documents that a stage left."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        columns = {name: table.column(name) for name in table.column_names}
        texts = columns.pop("text").to_pylist()
        number = columns.pop("number").to_numpy()
        facts = {name: _values(column) for name, column in columns.items()}
    return Documents(np.array(number), texts, facts)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), object)
    return np.array(column.to_numpy())  # a copy: the file is closed


def _keep(
    folder: Path, place: int, number: int, stage: Stage, documents: Documents, settled: Keys | None
) -> None:
    result = run(stage, documents, settled)
    if multiprocessing.parent_process() is not None:  # elsewhere the heap is not frozen, and this dear
        gc.collect()  # whatever pages an operator has made and not let go
    path = _place(folder, place, number)
    columns = {"number": result.left.number, "text": pa.array(result.left.texts, pa.string())}
    for name, values in result.left.facts.items():
        columns[name] = pa.array(values.tolist(), pa.string()) if values.dtype.kind in "OU" else values
    table = pa.table(columns)
    with (
        _aside(path) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as file,
    ):
        file.write_table(table)
    keys = {**result.keys, "number": result.left.number} if stage.closes is not None else {}
    for name, values in keys.items():
        with _aside(path.with_suffix(f".{name}.npy")) as aside, aside.open("wb") as raw:
            # A column of a table is read alone later: it must lie in one piece.
            np.save(raw, np.asfortranarray(values) if values.ndim == 2 else values, allow_pickle=False)
    record = {
        "documents": len(result.left),
        "dropped": result.dropped,
        "tallies": [tally.data() for tally in result.tallies],
        "samples": result.samples,
    }
    disk.sync(path.parent)  # no record may stand without what it tells of
    with _aside(path.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


class _aside:
    """A file beside its place, brought to the disk and there when it is whole."""

    def __init__(self, path: Path) -> None:
        # Workers of two machines may have one number, and one of them be given up while it still writes.
        own = f"{os.getpid()}{secrets.randbelow(10**12):012}"
        self.path, self.other = path, path.with_name(f"{path.name}.{own}")

    def __enter__(self) -> Path:
        return self.other

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                disk.sync(self.other)
                os.replace(self.other, self.path)
        finally:
            self.other.unlink(missing_ok=True)  # what is whole has its own name by now


def _place(folder: Path, stage: int, number: int) -> Path:
    return folder / str(stage) / f"{number:06}.arrow"


def _await(path: Path, seconds: float = SIGHT) -> None:
    """Until a record is seen here: a folder shared by machines may show a new file later to another one.

    Raises ShunterError where it does not come."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            raise ShunterError(
                f"a worker says that it wrote a file which is not here after {seconds:g} s",
                where=str(path),
                mend="Put the store on a file system that all nodes share.",
            )
        os.listdir(path.parent)  # has the folder looked at anew
        time.sleep(0.05)


def _record(folder: Path, stage: int, number: int) -> Done:
    data = json.loads(_place(folder, stage, number).with_suffix(".json").read_text(encoding="utf-8"))
    return Done(
        data["documents"], data["dropped"], [Tally.of(part) for part in data["tallies"]], data["samples"]
    )


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked from here: a fork of a process with threads may hang. One server loads this module once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_worker)


def _worker() -> None:
    """Let a worker end when the process that it works for is gone: it would wait for work for ever."""
    gc.collect()
    gc.freeze()  # what is loaded is not looked through after every chunk
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
