"""Publication: files are digested and synced, the manifest is written last, one rename shows them.

A crash at any instant leaves either no artefact or a whole one. The order is what makes it so:
content on disk before the manifest that vouches for it, the manifest before the name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from shunter.recipe import disk
from shunter.recipe.artefact import Artefact, FileRecord, Manifest
from shunter.record import points

RESERVED = ("manifest.json", "log")


def publish(staging: Path, log: Path, manifest: Manifest, target: Path) -> Artefact:
    """Publish all that `staging` holds, with `log` as its `log/`, under the name `target`.

    `manifest` comes without files, content and time; they are filled in. Staging and target lie on one
    file system. OSError (a full disk) leaves nothing at `target`. ValueError for what a job must not
    have written: links, special files, the reserved names.
    """
    for name in RESERVED:
        if (staging / name).exists():
            raise ValueError(f"a job may not write {name!r} at the top of its artefact")
    if log.is_dir():
        # Links cost nothing; the log in the work folder stays whole for another attempt.
        shutil.copytree(log, staging / "log", copy_function=_link)
    records = []
    for path in disk.files(staging):
        disk.sync(path)
        records.append(
            FileRecord(
                path=path.relative_to(staging).as_posix(), bytes=path.stat().st_size, sha256=digest(path)
            )
        )
    for root, _, _ in os.walk(staging, topdown=False):
        disk.sync(Path(root))
    points.reach("publish.manifest", job=manifest.name)
    whole = manifest.model_copy(
        update={
            "files": records,
            "content": content(records),
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
    )
    disk.write_atomic(staging / "manifest.json", whole.model_dump_json(indent=1) + "\n")
    points.reach("publish.rename", job=manifest.name)
    # Onto a folder with anything in it this fails: an artefact is never replaced.
    os.rename(staging, target)
    disk.sync(target.parent)
    disk.sync(staging.parent)
    points.reach("publish.done", job=manifest.name)
    return Artefact(target, whole)


def content(records: list[FileRecord]) -> str:
    """Digest over the files outside `log/`: paths, sizes and digests, in the order of paths."""
    lines = [
        f"{record.path}\t{record.bytes}\t{record.sha256}\n"
        for record in sorted(records, key=lambda record: record.path)
        if not record.path.startswith("log/")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # No hard links here (some network and FAT file systems).
        shutil.copy2(source, target)
