"""How much of some files has been read, in bytes as they lie on disk, while someone else reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Meter:
    """Counts files that are read one after another. Of one that is open, what lies behind the place of
    reading counts; of Parquet files and archives, which are read here and there, the whole at their end,
    unless somebody says what share is read."""

    def __init__(self) -> None:
        self._done = self._part = 0
        self._open: IO[bytes] | None = None

    @property
    def read(self) -> int:
        """Bytes so far."""
        here = self._open.tell() if self._open is not None and not self._open.closed else 0
        return self._done + self._part + here

    @contextmanager
    def opened(self, path: Path) -> Iterator[IO[bytes]]:
        """A file for someone to read."""
        with path.open("rb") as raw:
            self._open = raw
            yield raw

    def passed(self, path: Path, share: float) -> None:
        """So much of a file is read, between 0 and 1."""
        self._part = int(path.stat().st_size * share)

    def finished(self, path: Path) -> None:
        """A file is read to its end."""
        self._open, self._part = None, 0
        self._done += path.stat().st_size
