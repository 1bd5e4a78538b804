"""A job on several processes: started by the runner's process, each doing the same job on its rank.

The runner's process shows the progress, hands on requests to save or stop, and publishes. Rank 0 writes
what a single process would have written; the other ranks write into a folder of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.launch.recur import RanksEnded, forget, told_again
from shunter.recipe.artefact import Artefact, Manifest
from shunter.recipe.control import RunControl, request
from shunter.recipe.graph import Graph
from shunter.recipe.job import JobContext, Stopped
from shunter.record.events import EventLog, read
from shunter.train.config import Parallel

WAIT = 60  # seconds for processes of an earlier attempt to be gone

# What ranks import when they work: loaded once, before they are forked.
LOADS = (
    "shunter.jobs.pretrain", "shunter.jobs.sft", "shunter.jobs.milestones", "shunter.jobs.pupils",
    "shunter.models.hf", "shunter.train.loop", "shunter.train.task.run", "shunter.train.world",
)  # fmt: skip


def processes(parallel: Parallel) -> int:
    """How many processes a job with this layout takes."""
    return parallel.grid.size


def needed(graph: Graph, selected: Sequence[str]) -> dict[str, int]:
    """Job -> its processes, for those of the selected jobs that take several."""
    found = {}
    for name in selected:
        parallel = getattr(getattr(graph.nodes[name].config, "how", None), "parallel", None)
        if isinstance(parallel, Parallel):
            found[name] = processes(parallel.located(graph.base))
    return found


def spread(context: JobContext[Any], parallel: Parallel) -> dict[str, Any]:
    """The job of this context on as many processes as `parallel` says: those of the context's crew, or
    else started here on this machine. Returns its metrics. Raises Stopped after they saved on request.

    By a plan they are watched, and started again under a better one, where the recipe asks for it."""
    from shunter.jobs.replanning import Course

    folder = context.work.absolute() / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    follow = _follower(context)
    course = Course(context, context.config.how.parallel, parallel)

    def poll() -> None:
        if context.control.stop_requested():
            request(folder, "stop")
        if context.control.take_save_request():
            request(folder, "save")
        for event in follow():
            if course.see(event):
                request(folder, "stop")

    try:
        while True:
            for name in ("stop", "save"):
                (folder / name).unlink(missing_ok=True)
            answer = _launch(context, course.parallel, folder, poll)
            if not answer.get("stopped"):
                return {**answer["metrics"], **course.account()}
            if context.control.stop_requested() or course.turned() is None:
                raise Stopped
    finally:
        course.close()


def _launch(
    context: JobContext[Any], parallel: Parallel, folder: Path, poll: Callable[[], None]
) -> dict[str, Any]:
    """What rank 0 answers."""
    count, threads = processes(parallel), context.config.how.threads
    if context.crew is None:
        start, threads = elastic.launch, threads or max(1, len(os.sched_getaffinity(0)) // count)
    else:
        from shunter.launch.crew import Crew

        assert isinstance(context.crew, Crew)
        start = context.crew.launch
    told = {
        "kind": context.config.kind,
        "name": context.name,
        "config": _with(context.config, parallel),
        "inputs": {
            field: [_told(each) for each in found] if isinstance(found, list) else _told(found)
            for field, found in context.inputs.items()
        },
        "out": str(context.out.absolute()),
        "log": str(context.log.absolute()),
        "work": str(context.work.absolute()),
        "base": str(context.base.absolute()),
        "attempt": context.events.attempt,
        "timeout": parallel.timeout,
        "ranks": parallel.ranks,
    }
    try:
        answer: dict[str, Any] = start("shunter.jobs.ranks", told, count, folder, threads=threads, poll=poll)
    except RanksEnded as error:
        raise told_again(error, folder, _last_step(context.log, context.events.attempt)) from None
    forget(folder)
    return answer


def _last_step(log: Path, attempt: int) -> int | None:
    """The last one that this attempt has written of; None before any was."""
    for name in ("ledger.jsonl", "events.jsonl"):
        steps = [e["step"] for e in read(log / name) if e.get("attempt") == attempt and "step" in e]
        if steps:
            return int(steps[-1])
    return None


def _follower(context: JobContext[Any]) -> Callable[[], list[dict[str, Any]]]:
    """Shows the events that rank 0 writes: hands each new whole line of the log to the listener, and returns
    them."""
    file = context.events.path.open(encoding="utf-8")
    file.seek(0, os.SEEK_END)
    rest = ""

    def follow() -> list[dict[str, Any]]:
        nonlocal rest
        *lines, rest = (rest + file.read()).split("\n")
        found = [json.loads(line) for line in lines if line.strip()]
        for event in found:
            context.events.relay(event)
        return found

    return follow


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """The job on one rank."""
    from shunter.jobs.registry import KINDS
    from shunter.launch.inject import install_from_environment
    from shunter.train.world import join

    job = KINDS[request["kind"]]
    config = job.Config.model_validate(request["config"])
    folder = Path(request["folder"])
    install_from_environment(rank=rank, job=request["name"])
    lock = (folder / "lock").open("w")
    if rank == 0:
        _alone(lock)
    how: Any = config.how
    parallel: Parallel = how.parallel
    world = join(parallel.grid, rank, how.device, request["timeout"], parallel.others)
    log = Path(request["log"]) if rank == 0 else folder / str(rank)
    if rank:
        config = _quiet(config)
    events = EventLog(log / "events.jsonl", attempt=request["attempt"])
    control = RunControl(folder)
    context: JobContext[Any] = JobContext(
        name=request["name"],
        config=config,
        inputs={
            field: [_artefact(each) for each in told] if isinstance(told, list) else _artefact(told)
            for field, told in request["inputs"].items()
        },
        out=Path(request["out"]),
        log=log,
        work=Path(request["work"]),
        base=Path(request["base"]),
        events=events,
        control=world.shared(control),
        world=world,
    )
    try:
        return {"metrics": job.run(context)}
    except Stopped:
        return {"stopped": True}
    finally:
        events.close()


def _with(config: Any, parallel: Parallel) -> dict[str, Any]:
    how = config.how.model_copy(update={"parallel": parallel})
    told: dict[str, Any] = config.model_copy(update={"how": how}).model_dump(mode="json")
    return told


def _told(artefact: Artefact) -> dict[str, Any]:
    return {"path": str(artefact.path.absolute()), "manifest": artefact.manifest.model_dump(mode="json")}


def _artefact(told: dict[str, Any]) -> Artefact:
    return Artefact(Path(told["path"]), Manifest.model_validate(told["manifest"]))


def _quiet(config: Any) -> Any:
    """Trackers are rank 0's."""
    return config.model_copy(update={"how": config.how.model_copy(update={"track": []})})


def _alone(lock: Any) -> None:
    """Wait until no process of an earlier attempt writes here. The lock is held until this one ends."""
    import time

    for _ in range(10 * WAIT):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.1)
    raise ShunterError(
        "processes of an earlier attempt are still at work", mend="End them, then run the command again."
    )


if __name__ == "__main__":
    code = elastic.serve(work)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # process groups whose peers are gone would wait for them
