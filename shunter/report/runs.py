"""A run in the store as facts: what its record says, what its artefacts hold, what unfinished work left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.recipe.artefact import Artefact, Manifest
from shunter.report.facts import Facts, JobFacts, from_artefact, read_json, read_lines, seconds_between
from shunter.report.numbers import number


def find_run(store: Path, ref: str | None) -> Path:
    """The folder of the newest run that `ref` names: a run id, a recipe's name or path, or any run.

    Raises ShunterError when the store holds no such run.
    """
    runs = store / "runs"
    folders = sorted((path.parent for path in runs.glob("*/run.json")), key=lambda path: path.name)
    if not folders:
        raise ShunterError(
            f"no run in the store {store}", mend="Run a recipe first, or name its store with --store."
        )
    if ref is None:
        return max(folders, key=lambda path: (path / "run.json").stat().st_mtime)
    named = [path for path in folders if _named(path, ref)]
    if not named:
        known = ", ".join(path.name for path in folders[-5:])
        raise ShunterError(f"no run {ref!r} in the store {store}", mend=f"The newest runs are: {known}.")
    return max(named, key=lambda path: (path / "run.json").stat().st_mtime)


def _named(folder: Path, ref: str) -> bool:
    if ref in (folder.name, str(folder)):
        return True
    record = read_json(folder / "run.json", [])
    if not isinstance(record, Mapping):
        return False
    recipe = record.get("recipe")
    names = {record.get("name"), recipe if isinstance(recipe, str) else None}
    if isinstance(recipe, str) and Path(ref).suffix and Path(ref).resolve() == Path(recipe).resolve():
        return True
    return ref in names


def from_run(store: Path, folder: Path) -> Facts:
    """Facts of the run in `folder`, finished, failed or still going on."""
    facts = Facts(title=folder.name, run=folder.name)
    record = read_json(folder / "run.json", facts.problems)
    if not isinstance(record, Mapping):
        return facts
    recipe = record.get("recipe")
    facts.title = str(record.get("name") or folder.name)
    facts.recipe = str(recipe) if isinstance(recipe, str) else None
    facts.state = str(record["state"]) if record.get("state") else None
    facts.began, facts.ended = record.get("begin"), record.get("end")
    facts.seconds = number(record.get("seconds")) or seconds_between(facts.began, facts.ended)
    jobs = record.get("jobs")
    for name, entry in (jobs if isinstance(jobs, Mapping) else {}).items():
        facts.jobs.append(_job(store, str(name), entry if isinstance(entry, Mapping) else {}, facts.problems))
    return facts


def _job(store: Path, name: str, entry: Mapping[str, Any], problems: list[str]) -> JobFacts:
    folder = entry.get("artefact")
    if isinstance(folder, str) and folder:
        path = store / "artefacts" / Path(folder).name
        try:
            manifest = Manifest.model_validate_json((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            problems.append(f"the artefact of {name} cannot be read: {first}")
        else:
            return from_artefact(Artefact(path, manifest), reused=entry.get("state") == "reused")
    job = JobFacts(
        name=name,
        kind=str(entry.get("kind", "")),
        type=str(entry.get("type", "")),
        state=str(entry.get("state") or "waiting"),
        id=str(entry.get("id", "")),
        error=str(entry["error"]) if entry.get("error") else None,
        inputs=[str(item) for item in entry["inputs"]] if isinstance(entry.get("inputs"), list) else [],
    )
    for half in ("what", "how"):
        if isinstance(entry.get(half), dict):
            setattr(job, half, entry[half])
    work = store / "work" / f"{name}-{job.id[:12]}"
    if job.id and work.is_dir():
        _unfinished(job, work, problems)
    return job


def _unfinished(job: JobFacts, work: Path, problems: list[str]) -> None:
    """Attempts and logs of a job that has not published."""
    job.log = work / "log"
    if (work / "attempts.jsonl").is_file():
        job.attempts = list(read_lines(work / "attempts.jsonl", problems))
    seconds = [s for attempt in job.attempts if (s := number(attempt.get("seconds"))) is not None]
    peaks = [p for attempt in job.attempts if (p := number(attempt.get("peak_bytes"))) is not None]
    job.seconds = sum(seconds) if seconds else None
    job.peak_bytes = max(peaks, default=None)
