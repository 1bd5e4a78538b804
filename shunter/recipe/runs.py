"""Run records: what a command set out to make, and how far it came.

A run is one command carried through to its end. Killed and started again, the same command continues
the same run.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shunter.config import canonical
from shunter.config.errors import ShunterError
from shunter.recipe import disk
from shunter.recipe.lock import Busy, Lock, holder

RUN_FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands on disk. `data` is `run.json`."""

    folder: Path
    data: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> RunRecord | None:
        """The run in a folder; None when there is none, or it is of a newer format."""
        data = disk.read_json(folder / "run.json")
        if data is None or not isinstance(data.get("jobs"), dict) or data.get("format", 1) != RUN_FORMAT:
            return None
        return cls(folder, data)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        return str(self.data.get("name", ""))

    @property
    def recipe(self) -> str:
        """The recipe file's absolute path."""
        return str(self.data.get("recipe", ""))

    @property
    def updated(self) -> float:
        """When it last changed, Unix seconds."""
        return float(self.data.get("updated", 0.0))

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """Job name -> state, artefact (folder name or None), id, kind, type, inputs, error."""
        found: dict[str, dict[str, Any]] = self.data["jobs"]
        return found

    @property
    def pid(self) -> int | None:
        """The process that carries it on now; None when nobody does."""
        return holder(self.folder / "lock")

    @property
    def state(self) -> str:
        """running, done, failed, stopped; killed when it says running and no process holds it."""
        state = str(self.data.get("state", ""))
        return "killed" if state == "running" and self.pid is None else state

    def job_state(self, name: str) -> str:
        """The state of one job: waiting, running, done, reused, failed, stopped, left out, killed."""
        state = str(self.jobs[name].get("state", ""))
        return "killed" if state == "running" and self.pid is None else state


class Run:
    """The run that this process carries on. It holds the run's lock until closed."""

    def __init__(self, folder: Path, data: dict[str, Any], lock: Lock) -> None:
        self.folder, self.data, self._lock = folder, data, lock
        self._since = time.monotonic()
        self._before = float(data.get("seconds", 0.0))

    @classmethod
    def begin(cls, runs: Path, command: Mapping[str, Any], facts: Mapping[str, Any], text: str) -> Run:
        """Continue the newest run of the same command that did not finish, or begin a new one."""
        key = canonical.digest(command)
        for folder in sorted(runs.iterdir(), reverse=True):
            known = RunRecord.load(folder)
            if known is None or known.data.get("key") != key:
                continue
            if known.data.get("state") == "done":
                break
            try:
                lock = Lock(folder / "lock")
            except Busy:
                continue
            data = {**known.data, **facts, "sessions": int(known.data.get("sessions", 1)) + 1}
            return cls(folder, data, lock)._start(text)
        folder, lock = _new_folder(runs, str(facts["name"]))
        data = {
            "format": RUN_FORMAT,
            "id": folder.name,
            "key": key,
            "command": dict(command),
            "begin": datetime.now(UTC).isoformat(timespec="seconds"),
            "sessions": 1,
            "redone": [],
            **facts,
        }
        return cls(folder, data, lock)._start(text)

    def _start(self, text: str) -> Run:
        control = self.folder / "control"
        control.mkdir(exist_ok=True)
        # A request to an earlier session is not meant for this one.
        for name in ("stop", "save"):
            (control / name).unlink(missing_ok=True)
        if not (self.folder / "recipe.yaml").exists():
            disk.write_atomic(self.folder / "recipe.yaml", text)
        self.data.update(state="running", pid=os.getpid(), host=platform.node(), end=None)
        self.write()
        return self

    @property
    def control(self) -> Path:
        """Folder of requests from outside."""
        return self.folder / "control"

    def job(self, name: str, **facts: Any) -> None:
        """Change a job's entry and write the record."""
        self.data["jobs"][name].update(facts)
        self.write()

    def write(self) -> None:
        """Replace `run.json`."""
        self.data["seconds"] = round(self._before + time.monotonic() - self._since, 3)
        self.data["updated"] = time.time()
        disk.write_json(self.folder / "run.json", self.data)

    def end(self, state: str) -> None:
        """Record how this command ended, and let go of the run."""
        self.data.update(state=state, end=datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            self.write()
        except OSError as error:
            # On a full disk the record stays at `running`, and without its lock reads as killed.
            if not disk.is_full(error):
                raise
        finally:
            self._lock.close()


def _new_folder(runs: Path, name: str) -> tuple[Path, Lock]:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    for number in range(1, 1000):
        folder = runs / (f"{stamp}-{name}" + (f"-{number}" if number > 1 else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder, Lock(folder / "lock")
    raise ShunterError("a thousand runs began within this second", where=str(runs))
