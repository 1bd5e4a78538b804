"""Following a run from another process: its record and the events of the job that it works on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.recipe.progress import duration
from shunter.recipe.runs import RunRecord
from shunter.recipe.store import Store

# Metrics worth a place in the line, by name -> how it is shown.
SHOWN = {
    "train/loss": "loss {:.4f}",
    "valid/loss": "validation {:.4f}",
    "train/lr": "lr {:.2e}",
    "train/tokens_per_second": "{:,.0f} tokens/s",
}


class Watcher:
    """Gives, at each poll, the lines that came since the last one."""

    def __init__(self, store: Store, run: RunRecord) -> None:
        self.store, self.folder = store, run.folder
        self.run = run
        self._states: dict[str, str] = {}
        self._tails: dict[str, _Tail] = {}

    @property
    def ended(self) -> bool:
        """True when no process carries the run on."""
        return self.run.state != "running"

    def poll(self) -> list[str]:
        """New lines: a job's change of state, its newest metrics."""
        # The state first: what is written before the end is then read after it.
        self.run = RunRecord.load(self.folder) or self.run
        lines = []
        for name, entry in self.run.jobs.items():
            state = self.run.job_state(name)
            if state == "running":
                lines += self._announce(name, state)
                lines += self._metrics(name, entry)
            elif state not in ("waiting", "left out"):
                lines += self._announce(name, state, str(entry.get("error") or ""))
        return lines

    def last_line(self) -> str:
        """How the run ended."""
        return f"run {self.run.id} is {self.run.state}"

    def _announce(self, name: str, state: str, error: str = "") -> list[str]:
        if self._states.get(name) == state:
            return []
        self._states[name] = state
        return [f"{name}: {state}{f' ({error})' if error else ''}"]

    def _metrics(self, name: str, entry: Mapping[str, Any]) -> list[str]:
        if not entry.get("id"):
            return []
        path = self.store.work_folder(name, str(entry["id"])) / "log" / "events.jsonl"
        tail = self._tails.setdefault(name, _Tail(path))
        rows = [event for event in tail.read() if event.get("event") == "metrics"]
        rows = [row for row in rows if isinstance(row.get("step"), int)]
        if not rows:
            return []
        # Values that are logged rarely would be lost between two polls.
        values = {key: value for row in rows for key, value in dict(row.get("values") or {}).items()}
        step, total = int(rows[-1]["step"]), total_steps(entry)
        parts = [f"step {step}" + (f"/{total}" if total else "")]
        parts += [
            form.format(float(values[key]))
            for key, form in SHOWN.items()
            if isinstance(values.get(key), int | float)
        ]
        if total and (pace := tail.pace(rows)):
            parts.append(f"about {duration(max(0, total - step) / pace)} left")
        return [f"{name}: {', '.join(parts)}"]


class _Tail:
    """The whole lines that a file got since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0
        self._first: tuple[int, float, int] | None = None

    def read(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        events = []
        for line in data.decode("utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def pace(self, rows: list[dict[str, Any]]) -> float | None:
        """Steps a second since the attempt's first row."""
        for row in rows:
            attempt = int(row.get("attempt", 1))
            if self._first is None or self._first[2] != attempt:
                self._first = int(row["step"]), float(row["t"]), attempt
        assert self._first is not None
        steps, seconds = int(rows[-1]["step"]) - self._first[0], float(rows[-1]["t"]) - self._first[1]
        return steps / seconds if steps > 0 and seconds > 0 else None


def total_steps(entry: Mapping[str, Any]) -> int | None:
    """How many steps a job's configuration asks for, when it says so."""
    what = entry.get("what")
    for tree in (what, what.get("train") if isinstance(what, dict) else None):
        if isinstance(tree, dict) and isinstance(tree.get("steps"), int):
            return int(tree["steps"])
    return None


def find(store: Store, ref: str | None) -> RunRecord:
    """The run to watch: the one named, or the newest that goes on. Raises ShunterError when none does."""
    if ref is not None:
        run = store.run(ref)
        if run.state == "running":
            return run
    else:
        runs = store.runs()
        for each in reversed(runs):
            if each.state == "running":
                return each
        if not runs:
            raise ShunterError(
                f"nothing runs in the store {store.path}", mend="Start a run with shunter run RECIPE."
            )
        run = runs[-1]
    mend = (
        f"Its report: shunter report {run.id}."
        if run.state == "done"
        else f"Continue it with: shunter run {run.recipe}."
    )
    raise ShunterError(f"nothing runs: {run.id} is {run.state}", mend=mend)
