"""What a report is about: a run, its jobs and their artefacts, read from disk into plain types.

Everything here may be partial: a job that waits has no artefact, a killed one has no times, a file may
be damaged. What cannot be read becomes a sentence in `problems`; it never ends the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from shunter.recipe.artefact import Artefact, Manifest
from shunter.report.numbers import number


@dataclass
class JobFacts:
    """One job as far as it came. `path` is its artefact, `log` the folder with events.jsonl."""

    name: str
    kind: str = ""
    type: str = ""
    state: str = "waiting"
    id: str = ""
    content: str = ""
    path: Path | None = None
    log: Path | None = None
    inputs: list[str] = field(default_factory=list)
    seconds: float | None = None
    peak_bytes: float | None = None
    bytes: int | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    what: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    created: str | None = None
    error: str | None = None
    reused: bool = False

    @property
    def stem(self) -> str:
        """The name without a sweep's variant: `base` of `base[train.lr=0.001]`."""
        return self.name.split("[", 1)[0]


@dataclass
class Facts:
    """All that the page shows, before it is arranged."""

    title: str
    run: str | None = None
    recipe: str | None = None
    state: str | None = None
    began: float | str | None = None
    ended: float | str | None = None
    seconds: float | None = None
    jobs: list[JobFacts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of_type(self, kind: str) -> list[JobFacts]:
        """Jobs whose finished artefact has this type."""
        return [job for job in self.jobs if job.type == kind and job.path is not None]

    def with_answers(self) -> list[JobFacts]:
        """Jobs that kept answers for people to read: evaluations, and trainings by rewards at some steps."""
        learnt = [job for job in self.jobs if job.kind == "rl" and job.path is not None]
        return [*self.of_type("scores"), *learnt]


def from_artefact(artefact: Artefact, *, reused: bool = False) -> JobFacts:
    """Facts of a finished job, from its manifest alone."""
    manifest: Manifest = artefact.manifest
    seconds = [number(attempt.get("seconds")) for attempt in manifest.attempts]
    peaks = [number(attempt.get("peak_bytes")) for attempt in manifest.attempts]
    return JobFacts(
        name=manifest.name,
        kind=manifest.kind,
        type=manifest.type,
        state="done",
        id=manifest.id,
        content=manifest.content,
        path=artefact.path,
        log=artefact.path / "log",
        inputs=[record.name for record in manifest.inputs],
        seconds=sum(s for s in seconds if s is not None) if any(s is not None for s in seconds) else None,
        peak_bytes=max((p for p in peaks if p is not None), default=None),
        bytes=sum(file.bytes for file in manifest.files),
        attempts=manifest.attempts,
        what=manifest.what,
        how=manifest.how,
        metrics=manifest.metrics,
        created=manifest.created,
        reused=reused,
    )


def from_artefacts(title: str, artefacts: Iterable[Artefact]) -> Facts:
    """Facts about finished artefacts without a run around them, each once, in the order given."""
    unique = {artefact.path: artefact for artefact in artefacts}
    facts = Facts(title=title, jobs=[from_artefact(artefact) for artefact in unique.values()])
    facts.seconds = sum(job.seconds for job in facts.jobs if job.seconds is not None)
    return facts


def read_json(path: Path, problems: list[str]) -> Any:
    """The JSON in a file; None with a sentence in `problems` when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return None


def read_lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one at a time; damaged lines are counted in `problems`."""
    bad = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    item = json.loads(line)
                except (ValueError, RecursionError):
                    item = None
                if isinstance(item, dict):
                    yield item
                else:
                    bad += 1
    except OSError as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
    if bad:
        problems.append(f"{path.parent.name}/{path.name}: {bad} lines are not JSON objects and are left out")


def seconds_between(begin: float | str | None, end: float | str | None) -> float | None:
    """Seconds from one moment to another (Unix seconds or ISO 8601); None when either is unknown."""
    times = []
    for stamp in (begin, end):
        try:
            times.append(
                stamp if isinstance(stamp, int | float) else datetime.fromisoformat(stamp or "").timestamp()
            )
        except ValueError:
            return None
    return times[1] - times[0]
