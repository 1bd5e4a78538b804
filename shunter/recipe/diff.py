"""What differs between two runs, or two artefacts: configuration, inputs, code, metrics, scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.recipe.artefact import Artefact
from shunter.recipe.plan import ABSENT, tree_difference
from shunter.recipe.reads import changed
from shunter.recipe.runs import RunRecord
from shunter.recipe.status import code_of
from shunter.recipe.store import Damaged, Store

Items = Sequence[Mapping[str, Any]]
# Paired statistics of two models on the same items; see `shunter.evaluate.paired.compare_items`.
Pairing = Callable[[Items, Items], Mapping[str, Any]]


def compare(store: Store, a: str, b: str, paired: Pairing | None = None) -> dict[str, Any]:
    """Compare what two references mean: two runs, or two artefacts.

    Returns `a`, `b` (ids), `jobs` (one entry a job in either), `scores` (paired statistics by job,
    model and task, when `paired` is given). Raises ShunterError when a reference means nothing, or
    when one is a run and the other an artefact.
    """
    left, right = _resolve(store, a), _resolve(store, b)
    if isinstance(left, RunRecord) and isinstance(right, RunRecord):
        ours, theirs = _artefacts(store, left), _artefacts(store, right)
        names = list(dict.fromkeys([*left.jobs, *right.jobs]))
        jobs = [
            _job(name, ours.get(name), theirs.get(name), left.jobs.get(name), right.jobs.get(name))
            for name in names
        ]
        pairs = [(name, ours[name], theirs[name]) for name in names if name in ours and name in theirs]
        ids = left.id, right.id
    elif isinstance(left, Artefact) and isinstance(right, Artefact):
        if left.manifest.kind != right.manifest.kind:
            raise ShunterError(
                f"{a} was made by {left.manifest.kind} and {b} by {right.manifest.kind}",
                mend="Compare two runs, or two artefacts of one kind.",
            )
        name = left.name if left.name == right.name else f"{left.name} / {right.name}"
        jobs, pairs = [_job(name, left, right, None, None)], [(name, left, right)]
        ids = left.path.name, right.path.name
    else:
        raise ShunterError(f"one of {a!r} and {b!r} is a run and the other an artefact")
    scores = [row for name, x, y in pairs for row in _scores(name, x, y, paired)] if paired else []
    return {"a": ids[0], "b": ids[1], "jobs": jobs, "scores": scores}


def _resolve(store: Store, ref: str) -> RunRecord | Artefact:
    try:
        return store.run(ref)
    except ShunterError as no_run:
        try:
            return store.get(ref)
        except ShunterError as error:
            raise ShunterError(
                f"no run and no artefact {ref!r} in the store {store.path}", mend=error.mend or no_run.mend
            ) from None


def _artefacts(store: Store, run: RunRecord) -> dict[str, Artefact]:
    found = {}
    for name, entry in run.jobs.items():
        if folder := entry.get("artefact"):
            try:
                found[name] = store.load(store.artefacts / Path(str(folder)).name)
            except (Damaged, ShunterError):
                continue  # removed since: compared by what the run's record says
    return found


def _job(
    name: str,
    a: Artefact | None,
    b: Artefact | None,
    in_a: Mapping[str, Any] | None,
    in_b: Mapping[str, Any] | None,
) -> dict[str, Any]:
    halves = [_halves(a, in_a), _halves(b, in_b)]
    row: dict[str, Any] = {
        "name": name,
        "in": [side for side, half in zip("ab", halves, strict=True) if half],
    }
    if not all(halves):
        return {**row, "same": False}
    for half in ("what", "how"):
        row[half] = {
            key: [None if value is ABSENT else value for value in values]
            for key, values in tree_difference(halves[0][half], halves[1][half]).items()
        }
    if a is None or b is None:
        return {**row, "same": False, "unfinished": [s for s, x in (("a", a), ("b", b)) if x is None]}
    row["same"] = a.content == b.content
    row["inputs"] = [
        new.name
        for old, new in zip(a.manifest.inputs, b.manifest.inputs, strict=False)
        if old.name == new.name and old.content != new.content
    ]
    row["reads"] = changed(a.manifest.reads, b.manifest.reads)
    row["code"] = code_of(a).get("digest") == code_of(b).get("digest")
    metrics = (_headline(a.manifest.metrics), _headline(b.manifest.metrics))
    row["metrics"] = {
        key: [each.get(key) for each in metrics] for key in dict.fromkeys([*metrics[0], *metrics[1]])
    }
    return row


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of a training's account, which holds a whole plan, what a step took and was predicted to take."""
    account = metrics.get("account")
    if not isinstance(account, Mapping):
        return dict(metrics)
    names = {"step seconds": "step_seconds", "step seconds predicted": "plan_step_seconds"}
    told = {name: account[key] for name, key in names.items() if key in account}
    return {**{name: value for name, value in metrics.items() if name != "account"}, **told}


def _halves(artefact: Artefact | None, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if artefact is not None:
        return {"what": artefact.manifest.what, "how": artefact.manifest.how}
    if entry is not None:
        return {"what": entry.get("what", {}), "how": entry.get("how", {})}
    return {}


def _scores(name: str, a: Artefact, b: Artefact, paired: Pairing) -> list[dict[str, Any]]:
    """Paired statistics of every model and task that both artefacts scored."""
    ours, theirs = _items(a), _items(b)
    # Two artefacts that score one model each are compared whatever their models are called.
    models = [sorted({model for model, _ in side}) for side in (ours, theirs)]
    alias = {models[1][0]: models[0][0]} if len(models[0]) == len(models[1]) == 1 else {}
    rows = []
    for (model, task), items in theirs.items():
        other = ours.get((alias.get(model, model), task))
        if other is not None:
            rows.append({"job": name, "model": model, "task": task, **paired(other, items)})
    return rows


def _items(artefact: Artefact) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The scored items of a scores artefact by (model, task)."""
    path = artefact.path / "items.jsonl"
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    if artefact.type == "scores" and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            found.setdefault((str(item.get("model", "")), str(item.get("task", ""))), []).append(item)
    return found
