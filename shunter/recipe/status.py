"""Runs and jobs as `shunter status` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shunter.config.errors import ShunterError
from shunter.recipe.artefact import Artefact
from shunter.recipe.attempt import code_digest, read_attempts
from shunter.recipe.runs import RunRecord
from shunter.recipe.store import Damaged, Store


def run_data(store: Store, run: RunRecord) -> dict[str, Any]:
    """A run and its jobs as plain data: states, seconds, bytes, and whose code made each."""
    return {
        "run": run.id,
        "name": run.name,
        "recipe": run.recipe,
        "state": run.state,
        "begin": run.data.get("begin"),
        "end": run.data.get("end"),
        "seconds": run.data.get("seconds"),
        "sessions": run.data.get("sessions", 1),
        "pid": run.pid,
        "jobs": [_job(store, run, name, entry) for name, entry in run.jobs.items()],
    }


def _job(store: Store, run: RunRecord, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "kind": entry.get("kind"),
        "state": run.job_state(name),
        "artefact": entry.get("artefact"),
        "seconds": None,
        "peak_bytes": None,
        "bytes": None,
        "attempts": 0,
        "other_code": False,
        "error": entry.get("error"),
    }
    if folder := entry.get("artefact"):
        try:
            artefact = store.load(store.artefacts / str(folder))
        except (Damaged, ShunterError) as error:
            return row | {"state": "removed", "error": str(error)}
        return row | facts(artefact)
    if identifier := entry.get("id"):
        attempts = read_attempts(store.work_folder(name, str(identifier)))
        row |= _summary(attempts)
    return row


def facts(artefact: Artefact) -> dict[str, Any]:
    """What an artefact's manifest says of its making: seconds and peak memory over all attempts, size."""
    attempts = artefact.manifest.attempts
    return {
        **_summary(attempts),
        "bytes": sum(record.bytes for record in artefact.manifest.files),
        "other_code": made_by_other_code(artefact),
    }


def made_by_other_code(artefact: Artefact) -> bool:
    """True when another state of shunter's source finished it."""
    return code_of(artefact).get("digest") != code_digest()


def code_of(artefact: Artefact) -> Mapping[str, Any]:
    """The code record of the attempt that finished."""
    attempts = artefact.manifest.attempts
    code = attempts[-1].get("code") if attempts else None
    return code if isinstance(code, dict) else {}


def _summary(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [float(each["seconds"]) for each in attempts if isinstance(each.get("seconds"), int | float)]
    peaks = [int(each["peak_bytes"]) for each in attempts if isinstance(each.get("peak_bytes"), int | float)]
    return {
        "seconds": round(sum(seconds), 3) if seconds else None,
        "peak_bytes": max(peaks, default=None),
        "attempts": len(attempts),
    }
