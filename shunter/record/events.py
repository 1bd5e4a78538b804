"""The event log: one JSON object a line, appended, readable while it is written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to `path`. Each line has `t` (Unix seconds), `event`, `attempt` and its fields.

    A line is written whole and flushed, so a killed process leaves at most one torn last line, which
    `read` skips. `listener` is called with each event after it is written. Non-finite numbers are
    written as the strings "nan", "inf", "-inf": JSON has none.
    """

    def __init__(
        self, path: Path, *, attempt: int = 1, listener: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.attempt, self._listener = path, attempt, listener
        self._progress = -math.inf  # moment of the last progress event
        # A torn last line of a killed attempt would swallow our first: begin on a fresh line.
        torn = _ends_torn(path)
        self._file = path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        line = {"t": time.time(), "event": event, "attempt": self.attempt, **_plain(fields)}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._listener is not None:
            self._listener(line)

    def relay(self, line: dict[str, Any]) -> None:
        """Tell the listener of an event that another process wrote into this log."""
        if self._listener is not None:
            self._listener(line)

    def progress(self, done: int, total: int | None, unit: str, **shown: float | int | str) -> None:
        """How far the work is, for people who watch; at most one event a second, and the last one.

        shown: what else to show beside it, such as `loss=2.31`.
        """
        now = time.perf_counter()
        if now - self._progress >= 1.0 or done == total:
            self._progress = now
            self.write("progress", done=done, total=total, unit=unit, shown=shown)

    def metrics(self, step: int, **values: float | int | str) -> None:
        """Append the metrics of one step under the field's usual names (`train/loss`, `lr`, ...)."""
        self.write("metrics", step=step, values=values)

    @contextmanager
    def span(self, name: str, **fields: Any) -> Iterator[None]:
        """Record the start and end of a piece of work as one `span` event (seconds, monotonic)."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.write("span", name=name, seconds=time.perf_counter() - begin, **fields)

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of an event log, in the order written; a torn line is left out."""
    events = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "event" in event:
                events.append(event)
    return events


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One row a step, in order of step.

    A later attempt went back to a checkpoint: what earlier attempts had written from its first step on
    is superseded, so that no step counts twice and no row stands that the model never passed through.
    """
    rows: dict[int, dict[str, Any]] = {}
    newest = None
    for event in read(path):
        if event["event"] != "metrics" or not isinstance(event.get("step"), int):
            continue
        step, attempt = event["step"], event.get("attempt", 1)
        if newest is not None and attempt != newest:
            rows = {known: row for known, row in rows.items() if known < step}
        newest = attempt
        values = event.get("values")
        rows.setdefault(step, {}).update(
            {
                "step": step,
                "t": event.get("t"),
                "attempt": attempt,
                **(values if isinstance(values, dict) else {}),
            }
        )
    return [rows[step] for step in sorted(rows)]


def _ends_torn(path: Path) -> bool:
    """True when the file's last line lacks its line end."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
