"""One rank of a job, as a process that a process of the crew has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from shunter.launch import elastic, meeting, route
from shunter.launch.place import Place


class Child:
    """Runs `python -m module FILE` where FILE holds the request. Its output stands in the folder."""

    prefix: ClassVar[str] = "shunter."  # of modules that may be run: whoever reaches the store's port may ask

    def __init__(self, place: Place, number: int, order: dict[str, Any]) -> None:
        """number: of the order, which is the name of the ranks' meeting. Raises OSError where the folder
        cannot be written."""
        module = str(order["module"])
        if not module.startswith(self.prefix):
            raise ValueError(f"{module} is no part of shunter")
        rank, folder = place.rank, Path(order["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self._failure = folder / f"failed-{rank}.json"
        self._failure.unlink(missing_ok=True)
        request = folder / f"request-{rank}.json"
        request.write_text(json.dumps({**order["request"], "folder": str(folder)}), encoding="utf-8")
        threads = int(order["threads"]) or max(1, len(os.sched_getaffinity(0)) // place.local_size)
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(order["count"]),
            "LOCAL_RANK": str(place.local_rank),
            "LOCAL_WORLD_SIZE": str(place.local_size),
            "MASTER_ADDR": place.address,
            "MASTER_PORT": str(place.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # it is there already, whoever made it
            meeting.PREFIX: f"job{number}",
            "OMP_NUM_THREADS": str(threads),
        }
        for name, value in route.variables(place.address, place.port).items():
            environment.setdefault(name, value)
        with (folder / f"output-{rank}.txt").open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(request)], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                preexec_fn=elastic.die_with_parent,
            )  # fmt: skip
        self._told: float | None = None
        self._over = self._killed = False

    def poll(self) -> dict[str, Any] | None:
        """How it ended: its exit code (minus the signal that ended it, SIGTERM where that came from here) and
        what it told of its failure. None while it works."""
        code = self._process.poll()
        if code is None:
            if self._told is not None and time.monotonic() - self._told > elastic.PARTING:
                self._killed = True
                elastic.end_group(self._process.pid)
            return None
        self._end_rest()
        if self._killed and code == -signal.SIGKILL:
            code = -signal.SIGTERM
        failure = None
        if code != 0 and self._failure.exists():
            failure = json.loads(self._failure.read_text(encoding="utf-8"))
        return {"code": code, "failure": failure}

    def end(self) -> None:
        """Tell it to end; one that does not is killed by a later poll."""
        if self._told is None:
            self._told = time.monotonic()
            self._process.terminate()

    def kill(self) -> None:
        """End it now, with what it has started."""
        if self._process.poll() is None:
            elastic.end_group(self._process.pid)
            self._process.wait()
        self._end_rest()

    def _end_rest(self) -> None:
        """Once it has ended: what it has started. Only once, as its number is free then."""
        if not self._over:
            self._over = True
            elastic.end_group(self._process.pid)
