"""Runs a chain over a corpus: chunk by chunk and stage by stage, each done once whatever is killed.

A chunk is some consecutive documents. What a stage makes of a chunk is written aside and renamed, its
record last; a later attempt does what has no record. Row-wise operators hold one chunk a worker; barriers
hold a column of their keys at a time, which lie on disk.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from shunter.config.errors import ShunterError
from shunter.data.curation.chain import SAMPLES, Documents, Stage, Tally, run, stages
from shunter.data.curation.operators import Keys, Operator

RETRIES = 3  # pools that may break before the job ends: a worker that is killed again and again has a cause
Watch = Callable[[int, "Done"], None]


@dataclass(frozen=True)
class Done:
    """The record of one stage of one chunk."""

    documents: int  # that are left
    dropped: list[dict[str, Any]]
    tallies: list[Tally]
    samples: list[dict[str, Any]]


class Runner:
    """One chain in one folder, which survives a kill.

    watch(stage, done) is called in this process for every chunk that is done, also one done before; it may
    raise to stop, and nothing that is done is lost.
    """

    def __init__(
        self,
        folder: Path,
        operators: Sequence[Operator],
        workers: int,
        watch: Watch,
        excluded: bool = False,
    ) -> None:
        self.folder, self.workers, self.watch = folder, workers, watch
        self.stages = stages(operators, excluded)
        self.chunks = 0
        for number in range(len(self.stages)):
            (folder / str(number)).mkdir(parents=True, exist_ok=True)

    def run(self, chunks: Iterable[Documents]) -> None:
        """All stages. The chunks must be cut alike in every attempt."""
        first = self.stages[0]

        def begin() -> Iterator[tuple[int, Callable[[], Any]]]:
            for number, documents in enumerate(chunks):
                self.chunks = number + 1
                yield number, partial(start, self.folder, first, number, documents)

        self._all(0, begin())
        for place in range(1, len(self.stages)):
            settled = self._settled(place - 1)
            tasks = (
                (number, partial(go_on, self.folder, self.stages[place], place, number, part))
                for number, part in enumerate(settled)
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
        every = [s for number in range(len(self.stages)) for done in self.done(number) for s in done.samples]
        every.sort(key=lambda s: (s["operator"], s["reason"], s["number"]))
        groups = itertools.groupby(every, key=lambda s: (s["operator"], s["reason"]))
        return [sample for _, group in groups for sample in itertools.islice(group, SAMPLES)]

    def _settled(self, stage: int) -> Iterator[Keys]:
        """What the barrier at a stage's end settles, a part for each chunk."""
        barrier = self.stages[stage].closes
        assert barrier is not None
        settled = barrier.settle(_Columns(self.folder / str(stage), self.chunks))
        ends = np.cumsum(settled["rows"]) if "rows" in settled else None
        begin = 0
        for done in self.done(stage):
            end = begin + done.documents
            part = {}
            for name, values in settled.items():
                if ends is None or name == "rows":
                    part[name] = values[begin:end]
                else:
                    part[name] = values[ends[begin - 1] if begin else 0 : ends[end - 1] if end else 0]
            yield part
            begin = end

    def _all(self, stage: int, tasks: Iterator[tuple[int, Callable[[], Any]]]) -> None:
        """Do what is not done yet, some at a time, and tell of each in order."""
        waiting: deque[tuple[int, Callable[[], Any] | None]] = deque()
        broken = 0
        with ExitStack() as stack:
            pool: ProcessPoolExecutor | None = None
            futures: dict[int, Future[Any]] = {}
            more = True
            while more or waiting:
                while more and len(waiting) < 2 * self.workers:
                    number, task = next(tasks, (-1, None))
                    more = task is not None
                    if task is None:
                        break
                    finished = _place(self.folder, stage, number).with_suffix(".json").exists()
                    waiting.append((number, None if finished else task))
                    todo = sum(task is not None for _, task in waiting)
                    if self.workers > 1 and pool is None and todo > 1:
                        pool = stack.enter_context(_pool(self.workers))
                if not waiting:
                    break
                number, task = waiting[0]
                try:
                    if pool is not None:
                        for other, todo_ in waiting:
                            if todo_ is not None and other not in futures:
                                futures[other] = pool.submit(todo_)
                        if number in futures:
                            futures.pop(number).result()
                    elif task is not None:
                        task()
                except BrokenProcessPool:
                    broken += 1
                    if broken > RETRIES:
                        raise ShunterError(
                            f"worker processes were killed {broken} times",
                            mend="Look for a lack of memory; fewer `how.workers` need less. A rerun goes on.",
                        ) from None
                    futures.clear()
                    pool = stack.enter_context(_pool(self.workers))
                    continue
                waiting.popleft()
                try:
                    self.watch(stage, _record(self.folder, stage, number))
                except BaseException:
                    if pool is not None:
                        pool.shutdown(wait=True, cancel_futures=True)
                    raise


class _Columns:
    """Keys of all chunks of a stage as if they were arrays: one is put together when it is asked for."""

    def __init__(self, folder: Path, chunks: int) -> None:
        self._folder, self._chunks = folder, chunks

    def __getitem__(self, name: str) -> Any:
        return _Stacked([self._folder / f"{number:06}.{name}.npy" for number in range(self._chunks)])


class _Stacked:
    """Arrays one after another; a column or all of them is read when asked for. One file is open at a time: a
    corpus may have more chunks than a process may have files."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __getitem__(self, key: Any) -> np.ndarray:
        """`[:, n]` of two dims, else rows of everything."""
        parts = []
        for path in self._paths:
            mapped: Literal["r"] | None = "r" if path.stat().st_size > 4096 else None
            parts.append(np.array(np.load(path, mmap_mode=mapped)[key]))
        return np.concatenate(parts) if parts else np.zeros(0)

    def parts(self) -> Iterator[np.ndarray]:
        """The arrays one by one."""
        for path in self._paths:
            yield np.load(path)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        whole = np.concatenate([np.load(path) for path in self._paths]) if self._paths else np.zeros(0)
        return whole if dtype is None else whole.astype(dtype)


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
        return np.array(column.to_pylist(), np.str_)
    return np.array(column.to_numpy())  # a copy: the file is closed


def _keep(
    folder: Path, place: int, number: int, stage: Stage, documents: Documents, settled: Keys | None
) -> None:
    result = run(stage, documents, settled)
    path = _place(folder, place, number)
    columns = {"number": result.left.number, "text": pa.array(result.left.texts, pa.string())}
    for name, values in result.left.facts.items():
        columns[name] = pa.array(values.tolist(), pa.string()) if values.dtype.kind == "U" else values
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
            np.save(raw, values, allow_pickle=False)
    record = {
        "documents": len(result.left),
        "dropped": result.dropped,
        "tallies": [tally.data() for tally in result.tallies],
        "samples": result.samples,
    }
    with _aside(path.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


class _aside:
    """A file beside its place, brought there when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.other = path, path.with_name(path.name + f".{os.getpid()}")

    def __enter__(self) -> Path:
        return self.other

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            os.replace(self.other, self.path)
        else:
            self.other.unlink(missing_ok=True)


def _place(folder: Path, stage: int, number: int) -> Path:
    return folder / str(stage) / f"{number:06}.arrow"


def _record(folder: Path, stage: int, number: int) -> Done:
    data = json.loads(_place(folder, stage, number).with_suffix(".json").read_text(encoding="utf-8"))
    return Done(
        data["documents"], data["dropped"], [Tally.of(part) for part in data["tallies"]], data["samples"]
    )


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked from here: a fork of a process with threads may hang. One server loads this module once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, mp_context=context)
