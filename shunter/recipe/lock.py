"""One process at a time: an advisory lock that the kernel drops when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from shunter.config.errors import ShunterError


class Busy(Exception):
    """Another process holds the lock; `pid` is None when it has not written it yet."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        super().__init__(f"held by process {pid}")


class Lock:
    """Holds `path` by flock(2) until closed. The file holds the pid, for messages.

    flock belongs to the open file, so a child made by fork keeps it and an exec drops it (Python
    opens files close-on-exec). On a network file system it is as good as that system's locks.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock at once. Raises Busy when it is held, ShunterError when locks do not work here."""
        self.path = path
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # its holder has just removed the folder
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise Busy(_pid(path)) from None
                raise ShunterError(
                    f"this file system has no locks ({error.strerror})",
                    where=str(path),
                    mend="Put the store on a local disk with --store.",
                ) from None
            if _same(descriptor, path):
                break
            # The holder removed the file between our open and our lock: lock the new one.
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Let go. The file stays: removing it would race with the next holder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def holder(path: Path) -> int | None:
    """The pid that holds a lock now; 0 when it is unknown, None when nobody does. Changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return _pid(path) or 0
        return None
    finally:
        os.close(descriptor)
    return None


def _pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
