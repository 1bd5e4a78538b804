"""Runs a graph: job after job, each in its own work folder, each published as a whole."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from shunter.config.errors import ShunterError
from shunter.recipe import beginnings, disk, identity, preflight, reads
from shunter.recipe.artefact import Artefact, InputRecord, Manifest
from shunter.recipe.attempt import Attempts, read_attempts
from shunter.recipe.beginnings import Halting
from shunter.recipe.control import RunControl, RunStopped
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import JobConfig, JobContext, JudgesBeginnings, Stopped
from shunter.recipe.lock import Busy, Lock
from shunter.recipe.plan import Planner, Step
from shunter.recipe.progress import Progress
from shunter.recipe.runs import Run
from shunter.recipe.store import Store
from shunter.record import events, memory, points
from shunter.record.events import EventLog


class Crew(Protocol):
    """Processes that do what jobs on several processes ask; see `launch.crew`."""

    def stop(self) -> int | None:
        """The signal that asks the run to stop, as one of them heard it; None while there is none."""


def run_graph(
    graph: Graph,
    store: Store,
    *,
    first: str | None = None,
    last: str | None = None,
    redo: Sequence[str] = (),
    quiet: bool = False,
    progress: Progress | None = None,
    crew: Crew | None = None,
) -> dict[str, Artefact]:
    """Make every selected job's artefact, reusing finished ones; return the artefacts by job name.

    first, last: `--from` and `--to`. redo: jobs to make again although they are finished. crew: processes,
    here and on other machines, that wait to join jobs on several processes.

    Raises ShunterError for what is refused before any work and for what a job refuses, RunStopped
    after a stop request. Killed at any instant, the same call continues.
    """
    progress = progress or Progress(quiet=quiet)
    selected = graph.select(first, last)
    redone = {name for one in redo for name in graph.named(one)}
    if outside := redone - set(selected):
        raise ShunterError(f"{sorted(outside)[0]} is not among the jobs to run", mend="Leave out --redo.")
    store.create()
    planner = Planner(graph, store, redone)
    warnings = preflight.check(graph, store, planner.plan(selected))
    _remember(planner)
    for warning in warnings:
        progress.warn(warning)
    command = {
        "recipe": str(graph.path),
        "text": graph.text,
        "overrides": list(graph.overrides),
        "from": first,
        "to": last,
        "redo": sorted(redone),
    }
    facts = {"name": graph.name, "recipe": str(graph.path), "jobs": _entries(graph, selected)}
    try:
        run = Run.begin(store.runs_folder, command, facts, graph.text)
    except OSError as error:
        if disk.is_full(error):
            raise disk.full(error, store.path) from None
        raise
    # What an earlier session of this run has made again need not be made again.
    planner.redo -= set(run.data["redone"])
    state = "failed"
    try:
        points.reach("run.begin", run=run.folder.name)
        runner = _Runner(graph, store, planner, run, progress, crew)
        with runner.control.listening():
            made = runner.run(selected)
        state = "done"
    except (RunStopped, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        run.end(state)
    return made


def _entries(graph: Graph, selected: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "state": "waiting" if name in selected else "left out",
            "artefact": None,
            "kind": node.kind,
            "type": node.job.produces,
            "inputs": list(node.upstream),
            "what": identity.what(node.config),
            "how": identity.how(node.config),
        }
        for name, node in graph.nodes.items()
    }


def _remember(planner: Planner) -> None:
    with suppress(OSError):  # only a memory: on a full disk the digests are taken again
        planner.digests.save()


class _Runner:
    def __init__(
        self,
        graph: Graph,
        store: Store,
        planner: Planner,
        run: Run,
        progress: Progress,
        crew: Crew | None,
    ) -> None:
        self.graph, self.store, self.planner = graph, store, planner
        self.run_record, self.progress, self.crew = run, progress, crew
        self.control = RunControl(run.control, crew.stop if crew is not None else None)
        self.made: dict[str, Artefact] = {}
        self.judged: set[str] = set()  # jobs whose sweep was judged by its beginnings
        self.gone: set[str] = set()  # variants that are not gone on with, and what is made from them alone

    def run(self, selected: Sequence[str]) -> dict[str, Artefact]:
        steps = self.planner.plan(selected)
        self.progress.plan([step for step in steps if step.node.name in set(selected)])
        numbers = {name: number for number, name in enumerate(selected, 1)}
        for known in steps:
            name = known.node.name
            if name not in selected:
                if known.artefact is not None:
                    self._reuse(known)
                continue
            number = numbers[name]
            if self.control.stop_requested():
                self._stop(number, name)
            if known.node.stem in self.graph.early and known.node.stem not in self.judged:
                self._begin(known.node.stem, numbers)
            if name in self.gone:
                continue
            node = beginnings.without(known.node, self.gone.__contains__)
            if node is None:
                self.gone.add(name)
                self.run_record.job(name, state="left out")
                continue
            inputs = {up: self.made[up] for up in node.upstream}
            step = self.planner.step(node, inputs)
            if step.error is not None:
                raise step.error
            if step.state == "finished":
                self._clean(step)
                self._reuse(step)
                self.progress.reused(number, step)
            else:
                self._work(number, step, inputs)
        return self.made

    def _begin(self, stem: str, numbers: Mapping[str, int]) -> None:
        """Let all variants of a sweep run for the same few samples, and leave out those that begin badly."""
        self.judged.add(stem)
        wanted = self.graph.early[stem]
        nodes = [node for name, node in self.graph.nodes.items() if node.stem == stem and name in numbers]
        whole = [found for node in nodes if (found := beginnings.without(node, self.gone.__contains__))]
        for group in beginnings.alike(whole):
            job = group[0].job
            assert isinstance(job, JudgesBeginnings)
            if len(group) < 2:  # the others were not asked for, or are gone
                continue
            until = beginnings.samples(wanted, job, [node.config for node in group])
            logs: dict[str, tuple[JobConfig, Path]] = {}
            able: set[str] = set()
            for node in group:
                inputs = {up: self.made[up] for up in node.upstream}
                step = self.planner.step(node, inputs)
                if step.error is not None:
                    raise step.error
                if step.state != "finished":
                    self._work_until(numbers[node.name], step, inputs, job, until)
                    step = self.planner.step(node, inputs)
                if step.artefact is not None and node.name not in self.planner.redo:
                    folder = step.artefact.path
                else:
                    assert step.id is not None
                    folder = self.store.work_folder(node.name, step.id)
                    able.add(node.name)
                logs[node.name] = node.config, folder / "log" / "events.jsonl"
            verdict = beginnings.judge(wanted, job, logs, until)
            stopped = able & set(verdict.stopped)
            self.gone |= stopped
            told = {**verdict.told(), "stopped": sorted(stopped)}
            self.run_record.data.setdefault("early", []).append({"job": stem, **told})
            self.run_record.write()
            for name, score in verdict.scores.items():
                end = "stopped" if name in stopped else "goes on" if name in able else "is finished"
                self.progress.judged(numbers[name], name, f"after {until} samples: score {score:+.2f}, {end}")
            for name in stopped:
                self.run_record.job(name, state="stopped")

    def _work_until(
        self,
        number: int,
        step: Step,
        inputs: Mapping[str, Artefact],
        job: JudgesBeginnings,
        until: int,
    ) -> None:
        """Work on a job until it has seen so many samples, if it has not yet."""
        assert step.id is not None
        name, wanted = step.node.name, beginnings.steps_until(job, step.node.config, until)
        log = self.store.work_folder(name, step.id) / "log" / "events.jsonl"
        if log.exists() and any(int(row["step"]) >= wanted for row in events.read_metrics(log)):
            return
        halting = beginnings.Halting(self.control, wanted)
        try:
            self._work(number, step, inputs, halting)
        except RunStopped:
            if not halting.reached or self.control.stop_requested():
                raise

    def _reuse(self, step: Step) -> None:
        assert step.artefact is not None
        name, artefact = step.node.name, step.artefact
        self.made[name] = artefact
        entry = self.run_record.data["jobs"][name]
        # A session of this run may have made it: then it stays `done`.
        state = "done" if name in self.run_record.data.get("made", []) else "reused"
        entry.update(state=state, artefact=artefact.path.name, id=artefact.id)
        self.run_record.write()

    def _clean(self, step: Step) -> None:
        """Remove the work folder of a job that was killed between its publication and this removal."""
        assert step.artefact is not None
        work = self.store.work_folder(step.node.name, step.artefact.id)
        if not work.exists():
            return
        try:
            with Lock(work / "lock"):
                begins = [record.get("begin") for record in read_attempts(work)]
                published = [record.get("begin") for record in step.artefact.manifest.attempts]
                # Of a --redo that did not finish, the work is worth keeping.
                if not begins or begins == published:
                    disk.remove(work)
        except Busy:
            return

    def _stop(self, number: int, name: str) -> None:
        self.run_record.job(name, state="stopped")
        self.progress.stopped(number, name)
        raise RunStopped(name, self.control.code)

    def _work(
        self, number: int, step: Step, inputs: Mapping[str, Artefact], halting: Halting | None = None
    ) -> None:
        name = step.node.name
        assert step.id is not None
        try:
            lock = Lock(self.store.work_folder(name, step.id) / "lock")
        except Busy as busy:
            self.run_record.job(name, state="failed", error="another process works on it")
            raise preflight.being_made(name, busy.pid) from None
        with lock:
            if name not in self.planner.redo and (found := self.store.find(name, step.id)):
                # Another run published it between our look and our lock.
                step.artefact = found
                self._clean_held(step.id, name)
                self._reuse(step)
                self.progress.reused(number, step)
                return
            artefact = self._attempt(number, step, inputs, halting)
        self.made[name] = artefact
        self.run_record.data.setdefault("made", []).append(name)
        if name in self.planner.redo:
            self.run_record.data["redone"].append(name)
        self.run_record.job(name, state="done", artefact=artefact.path.name)

    def _clean_held(self, identifier: str, name: str) -> None:
        disk.remove(self.store.work_folder(name, identifier))

    def _attempt(
        self, number: int, step: Step, inputs: Mapping[str, Artefact], halting: Halting | None
    ) -> Artefact:
        node, identifier = step.node, step.id
        assert identifier is not None
        work = self.store.work_folder(node.name, identifier)
        begin, used = time.perf_counter(), _cpu_seconds()
        attempts = Attempts(work)
        log: EventLog | None = None
        try:
            # What a killed attempt had staged is worth nothing: its work goes on from `private`.
            disk.remove(work / "out")
            for folder in ("out", "private", "log"):
                (work / folder).mkdir(exist_ok=True)
            attempt = attempts.begin(identity.how(node.config))
            self.run_record.job(node.name, state="running", id=identifier, attempt=attempt, error=None)
            self.progress.begin(number, step, attempt)
            listener = self.progress.event if halting is None else self._heard(halting)
            log = EventLog(work / "log" / "events.jsonl", attempt=attempt, listener=listener)
            log.write("job.begin", job=node.name, kind=node.kind)
            own_peak = memory.begin_job()
            points.reach("job.begin", job=node.name)
            context: JobContext[Any] = JobContext(
                name=node.name,
                config=node.config,
                inputs={
                    field: inputs[names[0]] if field in node.single else [inputs[each] for each in names]
                    for field, names in node.inputs.items()
                },
                out=work / "out",
                log=work / "log",
                work=work / "private",
                base=self.graph.base,
                events=log,
                control=self.control if halting is None else halting,
                crew=self.crew,
            )
            metrics = node.job.run(context)
            points.reach("job.done", job=node.name)
            self._unchanged(step)
            # peak_of_job: False where the system cannot reset the peak, which then is the whole process's.
            seconds, peak = round(time.perf_counter() - begin, 3), memory.job_peak()
            facts = {"seconds": seconds, "peak_bytes": peak, "peak_of_job": own_peak}
            facts["cpu_seconds"] = round(_cpu_seconds() - used, 3)
            log.write("job.end", outcome="done", **facts)
            log.close()
            log = None
            attempts.note("done", **facts)
            manifest = _manifest(step, inputs, metrics, attempts.records)
            artefact = self.store.publish(work / "out", work / "log", manifest)
        except BaseException as error:
            begun = halting is not None and halting.reached
            self._ended(number, node, attempts, log, error, time.perf_counter() - begin, begun)
            if disk.is_full(error):
                raise disk.full(error, self.store.path) from error
            if isinstance(error, Stopped):
                raise RunStopped(node.name, self.control.code) from None
            raise
        disk.remove(work)
        gc.collect()  # a model that the job held in a cycle is not carried into the next one's peak
        self.progress.done(number, artefact, seconds, peak)
        return artefact

    def _heard(self, halting: Halting) -> Callable[[Mapping[str, Any]], None]:
        def listen(event: Mapping[str, Any]) -> None:
            halting.see(event)
            self.progress.event(event)

        return listen

    def _unchanged(self, step: Step) -> None:
        """What the job has read is still what its identity says."""
        now = self.planner.digests.of(step.node, self.graph.base)
        if changed := reads.changed(step.reads, now):
            raise ShunterError(
                f"{changed[0]} changed while {step.node.name} was reading it",
                mend="Leave its files alone and run the same command again.",
            )

    def _ended(
        self,
        number: int,
        node: Node,
        attempts: Attempts,
        log: EventLog | None,
        error: BaseException,
        seconds: float,
        begun: bool,
    ) -> None:
        """Record an attempt that did not finish; the cause itself goes on to be raised. begun: it was only to
        begin."""
        self.progress.rest()
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        outcome = "stopped" if stopped else "failed"
        text = None if stopped else f"{type(error).__name__}: {error}"
        # First of all give back the space: on a full disk nothing can be recorded before.
        with suppress(OSError):
            disk.remove(attempts.work / "out")
        # The record of a failure must not hide the failure; a disk may well be full here.
        with suppress(OSError):
            if log is not None:
                log.write("job.end", outcome=outcome, seconds=round(seconds, 3), error=text)
                log.close()
        if attempts.records and attempts.records[-1].get("outcome") in ("running", "done"):
            with suppress(OSError):
                attempts.end(outcome, seconds=round(seconds, 3), peak_bytes=memory.job_peak(), error=text)
        with suppress(OSError):
            self.run_record.job(node.name, state=outcome, error=text)
        if stopped and not begun:
            self.progress.stopped(number, node.name)


def _cpu_seconds() -> float:
    """CPU time of this process and its ended children: what a busy machine does not lengthen."""
    return sum(os.times()[:4])


def _manifest(
    step: Step, inputs: Mapping[str, Artefact], metrics: Mapping[str, Any], attempts: list[dict[str, Any]]
) -> Manifest:
    node = step.node
    return Manifest(
        name=node.name,
        kind=node.kind,
        type=node.job.produces,
        version=node.job.version,
        id=step.id or "",
        content="",
        what=identity.what(node.config),
        how=identity.how(node.config),
        inputs=[
            InputRecord(field=field, name=name, id=inputs[name].id, content=inputs[name].content)
            for field, names in node.inputs.items()
            for name in names
        ],
        reads=step.reads,
        metrics=dict(metrics),
        attempts=attempts,
        files=[],
        created="",
    )
