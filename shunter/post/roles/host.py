"""What a worker does with the controller's messages, whatever process it is in."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid
from shunter.parallel.mesh import Peers, ProcessGroups
from shunter.post.roles.role import Role, Station, class_of, protocol_of
from shunter.post.roles.shelf import Reader, Shelf
from shunter.post.roles.source import from_json, resolve

Groups = Callable[[], ProcessGroups]


class Host:
    """Roles on one worker. `do` carries messages out in the order in which they come."""

    def __init__(
        self,
        rank: int,
        peers: Peers,
        groups: ProcessGroups,
        shelf: Shelf,
        reader: Reader,
        folder: Path,
        exact: bool,
    ) -> None:
        """rank, peers: in the pool."""
        self.rank, self.peers, self.groups = rank, peers, groups
        self.shelf, self.reader, self.folder, self.exact = shelf, reader, folder, exact
        self.roles: dict[str, Role] = {}

    def close(self) -> None:
        """End the roles."""
        for role in self.roles.values():
            role.close()
        self.roles.clear()

    def do(self, message: dict[str, Any], *, own: bool = False) -> dict[str, Any] | None:
        """The answer: {"done": id, ...} or {"failed": ...}; None where there is none. own: in the
        controller's process, where an exception is raised as it is."""
        if message["do"] == "free":
            self.shelf.drop(message["keys"])
            return None
        id, begin, before = message["id"], time.monotonic(), self.reader.moved
        try:
            told = self._make(message) if message["do"] == "make" else self._call(message)
        except Exception as error:
            if own:
                raise
            return {"failed": id, **describe(error)}
        moved = self.reader.moved - before
        return {"done": id, "told": told, "begin": begin, "end": time.monotonic(), "moved": moved}

    def _make(self, message: dict[str, Any]) -> dict[str, float]:
        layout = Hybrid(**message["layout"])
        station = Station(
            message["role"], self.rank, layout, self.peers, self.groups, self.folder, exact=self.exact
        )
        self.roles[message["role"]] = class_of(message["kind"])(station, **message["settings"])
        return {}

    def _call(self, message: dict[str, Any]) -> dict[str, float]:
        role = self.roles[message["role"]]
        protocol_of(type(role), message["method"])  # anything else of it is not to be called
        given: Sequence[Any] = resolve(from_json(message["given"]), self.reader)
        role.told = {}
        result = getattr(role, message["method"])(*given, **message["named"])
        self.shelf.put(message["id"], result)
        return role.told


def describe(error: Exception) -> dict[str, Any]:
    """An exception as JSON values. lost: it is a consequence of what happened to another rank."""
    user = isinstance(error, ShunterError)
    text = str(error)
    # What gloo says of a peer that is gone, or is silent.
    lost = getattr(error, "lost", False) or (isinstance(error, RuntimeError) and "gloo" in text.lower())
    return {
        "user": user,
        "lost": bool(lost),
        "what": getattr(error, "what", None) or (text.strip().splitlines() or [type(error).__name__])[0],
        "where": getattr(error, "where", None),
        "mend": getattr(error, "mend", None),
        "traceback": traceback.format_exc(),
    }
