"""What a run would do with each job, and why: finished, to run, or not known before its inputs are made."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shunter.config.errors import ShunterError
from shunter.recipe import identity, reads
from shunter.recipe.artefact import Artefact, FileRecord, Manifest
from shunter.recipe.attempt import read_attempts
from shunter.recipe.graph import Graph, Node
from shunter.recipe.lock import holder
from shunter.recipe.reads import Digests
from shunter.recipe.store import Store

# The first this many differences are told.
MAX_REASONS = 3


@dataclass
class Step:
    """One job in a plan.

    state: finished, run, waits (its identity depends on what runs before it), left out, refused.
    id:    None while unknown.
    """

    node: Node
    state: str
    why: str
    id: str | None = None
    artefact: Artefact | None = None
    reads: list[FileRecord] = field(default_factory=list)
    error: ShunterError | None = None


class Planner:
    """Looks up jobs of one graph in one store. `redo`: names of jobs to make again."""

    def __init__(self, graph: Graph, store: Store, redo: Collection[str] = ()) -> None:
        self.graph, self.store, self.redo = graph, store, frozenset(redo)
        self.digests = Digests(store.path / "digests.json")

    def plan(self, selected: Sequence[str] | None = None) -> list[Step]:
        """A step a job, in the graph's order. Jobs outside `selected` are only looked up."""
        chosen = set(self.graph.nodes if selected is None else selected)
        steps: dict[str, Step] = {}
        needed = self.graph.upstream(chosen)
        for name, node in self.graph.nodes.items():
            if name not in needed:
                steps[name] = Step(node, "left out", "not asked for")
                continue
            waits = [up for up in node.upstream if steps[up].artefact is None]
            if waits:
                step = Step(node, "waits", f"depends on {', '.join(waits)}")
            else:
                inputs = {up: found for up in node.upstream if (found := steps[up].artefact)}
                step = self.step(node, inputs)
            if name not in chosen:
                self._only_looked_up(step)
            steps[name] = step
        return list(steps.values())

    def step(self, node: Node, inputs: Mapping[str, Artefact]) -> Step:
        """The step of one job whose inputs are all made."""
        try:
            files = self.digests.of(node, self.graph.base)
        except ShunterError as error:
            return Step(node, "refused", str(error), error=error)
        contents = {name: artefact.content for name, artefact in inputs.items()}
        identifier = identity.identify(node, contents, files)
        found = self.store.find(node.name, identifier)
        if found and node.name not in self.redo:
            return Step(node, "finished", "", identifier, found, files)
        if found:
            why = "asked for by --redo"
        else:
            why = self._why(node, contents, files)
        if note := self._unfinished(node, identifier):
            why = f"{why}; {note}" if found or why != "never made" else note
        return Step(node, "run", why, identifier, None, files)

    def _only_looked_up(self, step: Step) -> None:
        """A job before --from is taken as it is, or the run is refused."""
        name = step.node.name
        if step.state == "refused" or step.artefact is not None:
            return
        step.state = "refused"
        step.error = ShunterError(
            f"{name} is needed and not finished ({step.why})",
            mend=f"Start with --from {step.node.stem}, or leave --from out.",
        )
        step.why = str(step.error)

    def _why(self, node: Node, contents: Mapping[str, str], files: Sequence[FileRecord]) -> str:
        newest = self.store.newest(node.name)
        if newest is None:
            return "never made"
        reasons = differences(newest.manifest, node, contents, files)
        if not reasons:
            return f"{newest.path.name} was made by another identity of the same job"
        more = len(reasons) - MAX_REASONS
        shown = [*reasons[:MAX_REASONS], *([f"and {more} more"] if more > 0 else [])]
        return "; ".join(shown)

    def _unfinished(self, node: Node, identifier: str) -> str:
        work = self.store.work_folder(node.name, identifier)
        attempts = read_attempts(work)
        if not attempts:
            return ""
        if pid := holder(work / "lock"):
            return f"is being made by process {pid}"
        last = attempts[-1]
        outcome = {"running": "killed"}.get(str(last.get("outcome")), str(last.get("outcome")))
        return f"continues after attempt {last.get('attempt', len(attempts))}, which was {outcome}"


def differences(
    manifest: Manifest, node: Node, contents: Mapping[str, str], files: Sequence[FileRecord]
) -> list[str]:
    """What a job is now against a published manifest of the same name, as short sentences."""
    found = []
    if manifest.kind != node.kind:
        return [f"kind was {manifest.kind}"]
    if manifest.version != node.job.version:
        found.append(f"the job kind has version {node.job.version}, was {manifest.version}")
    for key, (old, new) in tree_difference(manifest.what, identity.what(node.config)).items():
        found.append(f"{key}: {show(old)} -> {show(new)}")
    before: dict[str, list[tuple[str, str]]] = {}
    for record in manifest.inputs:
        before.setdefault(record.field, []).append((record.name, record.content))
    for field_name, names in node.inputs.items():
        earlier = before.get(field_name, [])  # of an older version there may be no such field
        if earlier != [(name, contents[name]) for name in names] and [name for name, _ in earlier] == list(
            names
        ):
            old = dict(earlier)
            other = [name for name in names if old[name] != contents[name]]
            found.append(f"{', '.join(other)} has another content")
    changed = reads.changed(manifest.reads, files)
    if changed:
        found.append(f"file {changed[0]} changed" if len(changed) == 1 else f"{len(changed)} files changed")
    return found


ABSENT = object()


def tree_difference(old: Any, new: Any, at: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of every leaf that differs; ABSENT where one side has no such key."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*new, *old]):
            path = f"{at}.{key}" if at else str(key)
            found |= tree_difference(old.get(key, ABSENT), new.get(key, ABSENT), path)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = {}
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            found |= tree_difference(left, right, f"{at}.{index}" if at else str(index))
        return found
    return {} if old is new or (type(old) is type(new) and old == new) else {at: (old, new)}


def show(value: Any) -> str:
    """A leaf for a sentence, shortened."""
    if value is ABSENT:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 50 else f"{text[:47]}..."
