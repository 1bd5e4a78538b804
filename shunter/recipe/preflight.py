"""Everything that can be refused before any work, each with a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from shunter.config.errors import ShunterError
from shunter.recipe import disk
from shunter.recipe.graph import Graph
from shunter.recipe.job import ChecksGraph, EstimatesDisk
from shunter.recipe.lock import holder
from shunter.recipe.plan import Step
from shunter.recipe.store import Store

# Free space below which no run begins, beyond what its jobs say that they need: logs, manifests, records.
MIN_FREE = 50 * 10**6


def check(graph: Graph, store: Store, steps: Sequence[Step]) -> list[str]:
    """Warnings on a plan. Raises one ShunterError that lists every reason to refuse it."""
    errors: dict[str, ShunterError] = {}
    warnings: dict[str, None] = {}
    for step in steps:
        if step.error is not None:
            errors[str(step.error)] = step.error
        elif step.state in ("run", "waits"):
            try:
                found = [*step.node.job.check(step.node.config, graph.base)]
                if isinstance(step.node.job, ChecksGraph):
                    found += step.node.job.check_graph(step.node, graph)
                for warning in found:
                    warnings[f"{step.node.name}: {warning}"] = None
            except ShunterError as error:
                located = error
                if error.where is None:
                    located = ShunterError(error.what, where=step.node.where, mend=error.mend)
                errors[str(located)] = located
    for refused in (*_busy(store, steps), *_space(graph, store, steps), *_tampered(store, steps)):
        errors[str(refused)] = refused
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise ShunterError("\n".join(errors))
    return list(warnings)


def _busy(store: Store, steps: Sequence[Step]) -> list[ShunterError]:
    found = []
    for step in steps:
        if step.state == "run" and step.id:
            pid = holder(store.work_folder(step.node.name, step.id) / "lock")
            if pid is not None:
                found.append(being_made(step.node.name, pid))
    return found


def being_made(name: str, pid: int | None) -> ShunterError:
    """The sentence for a job on which another process works."""
    return ShunterError(
        f"{name} is being made by process {pid or 'unknown'}",
        mend="Wait for it (`shunter watch` shows it) and run the same command again.",
    )


def _space(graph: Graph, store: Store, steps: Sequence[Step]) -> list[ShunterError]:
    working = [step for step in steps if step.state in ("run", "waits")]
    if not working:
        return []
    need = MIN_FREE + sum(
        step.node.job.disk_bytes(step.node.config, graph.base)
        for step in working
        if isinstance(step.node.job, EstimatesDisk)
    )
    free = disk.free(store.path)
    if free >= need:
        return []
    return [
        ShunterError(
            f"not enough disk: about {disk.human(need)} are needed, {disk.human(free)} are free",
            where=str(store.path),
            mend="Free some space (`shunter gc` helps), or name another --store.",
        )
    ]


def _tampered(store: Store, steps: Sequence[Step]) -> list[ShunterError]:
    """Finished artefacts that are no longer as published, by names and sizes (a look, not a digest)."""
    found = []
    for step in steps:
        if step.artefact is not None and (problems := store.verify(step.artefact, sizes_only=True)):
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            found.append(
                ShunterError(
                    f"{problems[0]}{more}",
                    where=str(step.artefact.path),
                    mend=f"Restore it, or make it again with --redo {step.node.stem}.",
                )
            )
    return found
