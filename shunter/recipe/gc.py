"""Keeping a disk budget: what may go, oldest first, and why the rest stays."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.recipe import disk, lineage
from shunter.recipe.lock import Busy, Lock, holder
from shunter.recipe.store import Damaged, Store

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# What is being removed is first moved to a name of this form, so that no artefact is ever half there.
REMOVED = ".removed-"


@dataclass(frozen=True)
class Removal:
    """One folder that goes."""

    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class Sweep:
    """What gc would do. `bytes`: of the store now; `after`: once `removals` are gone."""

    removals: Sequence[Removal]
    bytes: int
    budget: int | None

    @property
    def after(self) -> int:
        return self.bytes - sum(removal.bytes for removal in self.removals)

    @property
    def is_over(self) -> bool:
        """Whether the store stays above the budget because the rest must not go."""
        return self.budget is not None and self.after > self.budget


def parse_size(text: str) -> int:
    """`2GB`, `500 MB`, `1.5GiB`, `1000` in bytes. Raises ShunterError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise ShunterError(f"{text!r} is no size", mend="Write it as 2GB, 500MB or 1.5GiB.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def sweep(store: Store, budget: int | None = None, *, break_lineage: bool = False) -> Sweep:
    """Choose what goes: orphan work and damaged folders always; until the store is within `budget` bytes,
    work of stopped runs that a newer run of their recipe came after, then artefacts, each oldest first.

    Never the work of a recipe's newest run, the newest artefact of a job, nor one that a run going on uses;
    nor, unless `break_lineage`, one from which a kept artefact was made.
    """
    orphans, superseded = _leftover_work(store)
    removals = [*orphans, *_damaged(store)]
    total = disk.size(store.path)
    excess = 0 if budget is None else total - sum(removal.bytes for removal in removals) - budget
    for removal in superseded:
        if excess > 0:
            removals.append(removal)
            excess -= removal.bytes
    artefacts = {artefact.path.name: artefact for artefact in store.all()}
    newest = {artefact.name: folder for folder, artefact in artefacts.items()}
    protected = set(newest.values()) | _in_use(store)
    inputs = lineage.needed(store)
    there = dict.fromkeys(artefacts)  # oldest first
    while excess > 0:
        needed = set() if break_lineage else {up for folder in there for up in inputs[folder]}
        folder = next((each for each in there if each not in protected and each not in needed), None)
        if folder is None:
            break
        del there[folder]
        size = disk.size(artefacts[folder].path)
        excess -= size
        why = f"not the newest {artefacts[folder].name}"
        removals.append(Removal(artefacts[folder].path, size, why))
    return Sweep(removals, total, budget)


def remove(store: Store, chosen: Sweep) -> int:
    """Remove what was chosen, except work that somebody has taken up since; return the bytes freed."""
    freed = 0
    for removal in chosen.removals:
        if removal.path.parent == store.work and not removal.path.name.startswith(REMOVED):
            try:
                with Lock(removal.path / "lock"):
                    disk.remove(removal.path)
            except Busy:
                continue
        else:
            aside = removal.path
            if not aside.name.startswith(REMOVED):
                aside = store.work / f"{REMOVED}{removal.path.name}-{os.getpid()}"
                os.rename(removal.path, aside)
                disk.sync(removal.path.parent)
            disk.remove(aside)
        freed += removal.bytes
    return freed


def _leftover_work(store: Store) -> tuple[list[Removal], list[Removal]]:
    """Work folders that no command would go on with, and those of stopped runs that a newer run of the same
    recipe came after, oldest first. A run is the same command: one with other overrides is another."""
    if not store.work.is_dir():
        return [], []
    runs = store.runs()
    newest = {run.recipe or run.id: run.id for run in runs}
    awaited: dict[str, bool] = {}  # work folder -> whether its run is its recipe's newest
    for run in runs:
        for name, entry in run.jobs.items():
            if run.state != "done" and entry.get("id") and entry.get("state") not in ("done", "reused"):
                folder = store.work_folder(name, str(entry["id"])).name
                awaited[folder] = awaited.get(folder, False) or newest[run.recipe or run.id] == run.id
    orphans, superseded = [], []
    for place in sorted(store.work.iterdir(), key=lambda path: path.stat().st_mtime):
        if not place.is_dir() or (not place.name.startswith(REMOVED) and holder(place / "lock") is not None):
            continue
        if place.name.startswith(REMOVED):
            orphans.append(Removal(place, disk.size(place), "half removed before"))
        elif place.name not in awaited:
            orphans.append(Removal(place, disk.size(place), "work that no run goes on with"))
        elif not awaited[place.name]:
            superseded.append(
                Removal(place, disk.size(place), "work of a stopped run, and a newer came after")
            )
    return orphans, superseded


def _damaged(store: Store) -> list[Removal]:
    found = []
    for folder, _, _, _ in store.folders():
        try:
            store.load(folder)
        except Damaged as error:
            found.append(Removal(folder, disk.size(folder), f"damaged: {error}"))
        except ShunterError:
            continue  # of a newer format: it is somebody's
    return found


def _in_use(store: Store) -> set[str]:
    return {
        str(entry["artefact"])
        for run in store.runs()
        if run.state == "running"
        for entry in run.jobs.values()
        if entry.get("artefact")
    }
