"""What a process of a crew does at once when it is told to: looks, measures, answers."""

from __future__ import annotations

import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch import links, route
from shunter.launch.place import Place

LOOKS = 10.0  # seconds that a network file system gets to show a file that another machine has written


class Hands:
    """`reply(order)` does what the order names, and gives the reply: a value, or why there is none."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._server: links.Server | None = None

    def reply(self, order: dict[str, Any]) -> dict[str, Any]:
        """Of an order {"do": name, ...}: {"value": ...}, {"refused": sentence} or {"failed": traceback}."""
        known: dict[str, Callable[[dict[str, Any]], Any]] = {
            "facts": self.facts,
            "see": self.see,
            "listen": self.listen,
            "measure": self.measure,
            "hush": self.hush,
        }
        try:
            return {"value": known[order["do"]](order)}
        except ShunterError as error:
            return {"refused": {"what": error.what, "where": error.where, "mend": error.mend}}
        except Exception:
            return {"failed": traceback.format_exc()}

    def hello(self) -> dict[str, Any]:
        """Which process this is."""
        place = self.place
        return {"host": place.host, "node": place.node, "local_size": place.local_size, "pid": os.getpid()}

    def facts(self, order: dict[str, Any]) -> dict[str, Any]:
        """What must agree between machines, and what is good to know."""
        import torch

        from shunter.recipe import attempt, disk

        code = attempt.code_record()
        store, base = Path(order["store"]), Path(order["base"])
        return {
            "name": platform.node(),
            "host": self.place.host,
            "node": self.place.node,
            "ranks": self.place.local_size,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None,
            "shunter": code["version"],
            "digest": code["digest"],
            "commit": code.get("commit"),
            "dirty": code.get("dirty"),
            "devices": attempt.devices(),
            "gpus": torch.cuda.device_count(),  # without touching them
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": attempt.memory_bytes(),
            "free_bytes": disk.free(store) if store.exists() else None,
            "recipe_seen": base.exists(),
            "shm_bytes": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
        }

    def see(self, order: dict[str, Any]) -> str | None:
        """Whether a file holds the text that rank 0 wrote; None then, else what is there instead."""
        path, text = Path(order["path"]), order["text"]
        until = time.monotonic() + LOOKS
        while True:
            try:
                found = None if path.read_text(encoding="utf-8") == text else "is another file"
            except FileNotFoundError:
                found = "is not there"
            except OSError as error:
                found = f"cannot be read: {error.strerror}"
            if found is None or time.monotonic() > until:
                break
            time.sleep(0.2)
        if found is None and not os.access(path.parent, os.W_OK | os.X_OK):
            found = "cannot be written"
        return found

    def listen(self, order: dict[str, Any]) -> dict[str, Any]:
        """Open a port on the address that leads to rank 0; whoever knows the token may measure."""
        try:
            address = route.own_address(self.place.address, self.place.port)
        except OSError as error:
            raise ShunterError(
                f"{self.place.host} knows no way to {self.place.address}: {error.strerror}",
                mend="Give an address that all machines reach with --address.",
            ) from None
        self.hush({})
        self._server = links.Server(address, order["token"])
        return {"address": address, "port": self._server.port, "interface": route.interface_of(address)}

    def measure(self, order: dict[str, Any]) -> dict[str, Any]:
        """Links from this process: `targets` is this rank's list of [name, address, port]."""
        found: dict[str, dict[str, Any]] = {}
        for name, address, port in order["targets"].get(str(self.place.rank), []):
            try:
                found[name] = {**links.measure(address, port, order["token"], bulk=name != "clock")}
            except OSError as error:
                found[name] = {"error": f"{address}:{port}: {error.strerror or error}"}
        return found

    def hush(self, order: dict[str, Any]) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()
            self._server = None
