"""A rank of a job that needs no torch: does as its request says."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch import elastic

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "SHUNTER_MEETING", "GLOO_SOCKET_IFNAME")


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """`act`: rank -> what it does; all others wait for a file, or answer at once."""
    act = request.get("act", {}).get(str(rank))
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "mistake":
        raise ShunterError("no such row", where="rows", mend="Make it.")
    if act == "bug":
        raise ValueError("a bug")
    if act == "hang":
        time.sleep(600)
    if act == "brood":  # as the zygote of a sandbox, or what reads data
        child = subprocess.Popen(["sleep", "600"])
        with open(request["pid"], "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        if request.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if request.get("deaf"):  # as a library that computes: no thread of Python runs meanwhile
            ctypes.PyDLL(None).sleep(600)
        time.sleep(600)
    if act == "pid":
        with open(request["pid"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    return {"size": size, "seen": {name: os.environ.get(name) for name in NAMES}}


if __name__ == "__main__":
    sys.exit(elastic.serve(work))
