"""Digests of files outside the store, remembered by size and time so that a dry run stays fast."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.recipe import disk, publish
from shunter.recipe.artefact import FileRecord
from shunter.recipe.graph import Node
from shunter.recipe.job import ReadsFiles

# A file changed within this many seconds of being digested could change again within the clock's grain
# without a trace, so that its digest is not remembered (as git treats its index).
RACY_SECONDS = 2.0


class Digests:
    """Digests by path. The memory is a file that may be lost or deleted at any time."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known = disk.read_json(memory) or {}
        self._changed = False

    def of(self, node: Node, base: Path) -> list[FileRecord]:
        """The files that a job reads, named relative to `base` where they lie in it."""
        if not isinstance(node.job, ReadsFiles):
            return []
        return [self._record(Path(path), base) for path in node.job.reads(node.config, base)]

    def _record(self, path: Path, base: Path) -> FileRecord:
        path = Path(os.path.abspath(base / path))
        name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
        try:
            stat = path.stat()
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]
            known = self._known.get(str(path))
            if isinstance(known, dict) and known.get("mark") == mark:
                return FileRecord(path=name, bytes=stat.st_size, sha256=str(known["sha256"]))
            sha256 = publish.digest(path)
        except OSError as error:
            raise ShunterError(f"cannot be read ({error.strerror})", where=str(path)) from None
        if time.time() - max(stat.st_mtime, stat.st_ctime) > RACY_SECONDS:
            self._known[str(path)] = {"mark": mark, "sha256": sha256}
            self._changed = True
        return FileRecord(path=name, bytes=stat.st_size, sha256=sha256)

    def save(self) -> None:
        """Write what was learnt. Two processes may overwrite each other: a digest is then taken again."""
        if self._changed:
            disk.write_json(self._memory, self._known)
            self._changed = False


def changed(before: Sequence[FileRecord], after: Sequence[FileRecord]) -> list[str]:
    """Names of the files that differ between two looks."""
    old, new = ({record.path: record for record in records} for records in (before, after))
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
