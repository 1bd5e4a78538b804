"""Where a worker keeps its results, and how others read them there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.parallel.lost import PeerLost
from shunter.post.roles import wire
from shunter.post.roles.rows import Rows
from shunter.post.roles.source import Extent, Part


class Shelf:
    """Results by key. Who asks for one that is not there yet waits."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._values: dict[int, Any] = {}
        self._changed = threading.Condition()

    def put(self, key: int, value: Any) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: int) -> Any:
        """Raises PeerLost where it does not come in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, self.timeout):
                raise PeerLost(f"result {key} did not come in {self.timeout:g} s")
            return self._values[key]

    def drop(self, keys: list[int]) -> None:
        """Nobody will ask for these any more."""
        with self._changed:
            for key in keys:
                self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)

    def extent(self, key: int) -> Extent:
        """What a result is."""
        value = self.get(key)
        return Extent(len(value), value.unit) if isinstance(value, Rows) else Extent(None, 1)

    def read(self, key: int, begin: int | None, end: int | None) -> Any:
        """A result, or rows of it."""
        value = self.get(key)
        return value if begin is None or end is None else value.take(begin, end)


class Server:
    """Lets other processes read a shelf, through a socket in a folder that this user alone may enter."""

    def __init__(self, shelf: Shelf, path: Path) -> None:
        self._shelf = shelf
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    (key, begin, end), _ = wire.receive(connection)
                    extent = self._shelf.extent(key)
                    wire.send(connection, [extent.rows, extent.unit])
                    if begin is None or begin >= 0:
                        wire.send(connection, self._shelf.read(key, begin, end))
            except (wire.Closed, PeerLost):  # who asked sees that nothing comes
                return


class Reader:
    """Reads results of all workers: of this process's own shelf as they are, of others by their sockets.

    moved: bytes that came from other processes.
    """

    def __init__(self, own: Mapping[int, Shelf], paths: Mapping[int, Path], timeout: float) -> None:
        self.own, self.paths, self.timeout = own, paths, timeout
        self.moved = 0

    def extent(self, part: Part) -> Extent:
        if part.worker in self.own:
            return self.own[part.worker].extent(part.key)
        with self._asked(part, -1, -1) as connection:
            (rows, unit), size = self._next(connection, part)
            self.moved += size
            return Extent(rows, unit)

    def read(self, part: Part, begin: int | None = None, end: int | None = None) -> Any:
        if part.worker in self.own:
            return self.own[part.worker].read(part.key, begin, end)
        with self._asked(part, begin, end) as connection:
            _, told = self._next(connection, part)
            value, size = self._next(connection, part)
            self.moved += told + size
            return value

    def _asked(self, part: Part, begin: int | None, end: int | None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        # One who waits for a result that a lost worker owes is ended by the controller long before.
        connection.settimeout(self.timeout + 5)
        try:
            connection.connect(str(self.paths[part.worker]))
            wire.send(connection, [part.key, begin, end])
        except (OSError, wire.Closed) as error:
            connection.close()
            raise lost(part, error) from None
        return connection

    def _next(self, connection: socket.socket, part: Part) -> tuple[Any, int]:
        try:
            return wire.receive(connection)
        except wire.Closed as error:
            raise lost(part, error) from None


def lost(part: Part, error: Exception) -> PeerLost:
    """What is said where a worker does not hand a result out."""
    return PeerLost(f"worker {part.worker} does not hand out its result ({error})")


def wait_for(path: Path, seconds: float) -> None:
    """Until a worker's socket is there. Raises ShunterError where it does not come."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            raise ShunterError(f"a worker did not begin in {seconds:g} s", where=str(path))
        time.sleep(0.01)
