"""Everything that can be checked before a run, as rows: the machine, the store, the recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.recipe import attempt, disk, preflight
from shunter.recipe.graph import load_recipe
from shunter.recipe.job import Job
from shunter.recipe.plan import Planner
from shunter.recipe.store import Store

OK, WARN, FAIL = "ok", "warning", "refused"
MIN_PYTHON = (3, 11)
LOW_MEMORY = 3 * 10**9
# Packages that a run needs although only some jobs import them.
NEEDED = ("torch", "numpy", "safetensors", "tokenizers", "pyarrow", "jinja2")
# extra -> distribution that shows whether it is installed.
EXTRAS = {
    "track": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "zstd": "zstandard",
    "lm-eval": "lm-eval",
}


@dataclass(frozen=True)
class Row:
    """One check: `state` is ok, warning or refused."""

    name: str
    state: str
    text: str


def examine(
    store_path: str,
    recipe: Path | None,
    overrides: Sequence[str],
    kinds: Mapping[str, Job[Any]],
    *,
    verify: bool = False,
) -> list[Row]:
    """All checks. `verify` also digests every byte of every artefact."""
    rows = [*_machine()]
    store: Store | None = None
    try:
        store = Store(store_path)
        rows += _store(store, verify)
    except ShunterError as error:
        rows.append(Row("store", FAIL, str(error)))
    rows.append(_disk(Path(store_path)))
    if recipe is not None:
        rows += _recipe(recipe, overrides, kinds, store)
    return rows


def _machine() -> Iterator[Row]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= MIN_PYTHON
    yield Row("python", OK if fits else FAIL, version if fits else f"{version}; 3.11 or newer is needed")
    for package in NEEDED:
        found = attempt.installed(package)
        text = found or f"not installed. Install it with: pip install {package}"
        yield Row(package, OK if found else FAIL, text)
    extras = [extra for extra, package in EXTRAS.items() if attempt.installed(package)]
    yield Row("extras", OK, ", ".join(extras) or "none installed; base jobs need none")
    record = attempt.environment_record()
    yield Row("cores", OK, f"{record['cores']} ({record['cpu']})")
    memory = int(record["memory_bytes"])
    low = memory < LOW_MEMORY
    yield Row(
        "memory",
        WARN if low else OK,
        disk.human(memory) + (f"; the quickstart needs {disk.human(LOW_MEMORY)}" if low else ""),
    )
    yield Row("devices", OK, ", ".join(record["devices"]) or "no accelerator: training runs on the CPU")


def _disk(path: Path) -> Row:
    free = disk.free(path.absolute())
    low = free < preflight.MIN_FREE
    return Row("disk", FAIL if low else OK, f"{disk.human(free)} free" + (" is not enough" if low else ""))


def _store(store: Store, verify: bool) -> Iterator[Row]:
    if not store.path.exists():
        yield Row("store", OK, f"{store.path} will be made by the first run")
        return
    artefacts = store.all()
    size = disk.human(disk.size(store.path))
    text = f"{store.path}: {len(artefacts)} artefacts, {len(store.runs())} runs, {size}"
    try:
        store.create()
    except ShunterError as error:
        yield Row("store", FAIL, str(error))
        return
    yield Row("store", OK, text)
    problems = store.damage()
    for artefact in artefacts:
        problems += store.verify(artefact, sizes_only=not verify)
    for problem in problems:
        yield Row("artefact", WARN, problem)
    if not problems:
        depth = "digests" if verify else "names and sizes (--verify reads every byte)"
        yield Row("artefacts", OK, f"as published, by {depth}")


def _recipe(
    recipe: Path, overrides: Sequence[str], kinds: Mapping[str, Job[Any]], store: Store | None
) -> Iterator[Row]:
    try:
        graph = load_recipe(recipe, overrides, kinds)
    except ShunterError as error:
        for line in str(error).splitlines():
            yield Row("recipe", FAIL, line)
        return
    yield Row("recipe", OK, f"{graph.name}: {len(graph.nodes)} jobs, no cycle, every input of its type")
    if store is None:
        return
    steps = Planner(graph, store).plan()
    try:
        warnings = preflight.check(graph, store, steps)
    except ShunterError as error:
        for line in str(error).splitlines():
            yield Row("jobs", FAIL, line)
        return
    for warning in warnings:
        yield Row("jobs", WARN, warning)
    finished = sum(step.state == "finished" for step in steps)
    yield Row("jobs", OK, f"{finished} of {len(steps)} are finished, the others can run")
