"""Runs a job's work without a store around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shunter.recipe.artefact import Artefact, Manifest
from shunter.recipe.job import JobContext
from shunter.record.events import EventLog


class Still:
    """A control that never asks for anything, unless told to stop after some looks."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after

    def stop_requested(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left < 0

    def take_save_request(self) -> bool:
        return False


Work = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """work(job, config, inputs={field: folder}, base=..., name=...) -> (folder that it wrote, metrics)."""
    return work_in(tmp_path)


def work_in(tmp_path: Path) -> Work:
    """The same for a folder, for what several tests share."""

    def run(
        job: Any,
        config: Mapping[str, Any],
        *,
        inputs: Mapping[str, Path | list[Path]] | None = None,
        base: Path | None = None,
        name: str | None = None,
        control: Any = None,
    ) -> tuple[Path, dict[str, Any]]:
        name = name or job.kind
        place = tmp_path / "made" / name
        number = 1 + len(list((place / "log").glob("*.begun")))
        for folder in ("out", "log", "private"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        (place / "log" / f"{number}.begun").touch()
        parsed = job.Config(kind=job.kind, **config)
        job.check(parsed, base or tmp_path)
        artefacts: dict[str, Any] = {
            field: [artefact(path) for path in folder] if isinstance(folder, list) else artefact(folder)
            for field, folder in (inputs or {}).items()
        }
        context = JobContext(
            name=name,
            config=parsed,
            inputs=artefacts,
            out=place / "out",
            log=place / "log",
            work=place / "private",
            base=base or tmp_path,
            events=EventLog(place / "log" / "events.jsonl", attempt=number),
            control=control or Still(),
        )
        return place / "out", job.run(context)

    return run


def artefact(path: Path) -> Artefact:
    """A folder as an input; the job's name is that of the folder around it."""
    manifest = Manifest(
        name=path.parent.name,
        kind="",
        type="",
        version=1,
        id="0" * 12,
        content="",
        what={},
        how={},
        inputs=[],
        metrics={},
        attempts=[],
        files=[],
        created="",
    )
    return Artefact(path, manifest)
