"""A process that has loaded what commands load, and a `shunter` that hands its command line to a fork of it.

A hundred commands of the documents would spend most of their time on imports. The fork has the caller's
arguments, folder, environment, input and outputs, and runs the same `main`. What that does not show is that a
command starts in a process of its own: tests/cli/test_main.py does.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.cli.documents import ROOT

# The caller's side: nothing but the standard library, so that it starts in a hundredth of a second.
SHIM = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({place!r})
asked = json.dumps({{"args": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}).encode()
socket.send_fds(link, [asked[:1]], [0, 1, 2])
link.sendall(asked[1:])
link.shutdown(socket.SHUT_WR)
told = link.recv(16)
sys.exit(int(told) if told else 1)
"""


class Warm:
    """folder: put it first into PATH."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warm-"))
        place = self.folder / "commands.sock"
        shim = self.folder / "shunter"
        shim.write_text(SHIM.format(python=sys.executable, place=str(place)))
        shim.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.warm", str(place)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "2"},  # read when torch is loaded
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def main(place: str) -> None:
    """Load, say so, and fork for each caller. Nothing is computed here: a fork of a process in which torch
    has started threads would hang."""
    for room in (
        "recipe",
        "data",
        "models",
        "train",
        "generate",
        "evaluate",
        "post",
        "report",
        "jobs",
        "cli",
    ):
        for module in sorted((ROOT / "shunter" / room).rglob("[a-z]*.py")):
            # An extra, and what runs without a package or as a program of its own.
            if module.stem not in ("lm_eval", "zygote", "entry", "ray") and "toys" not in module.parts:
                name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError as error:
                    if str(error.name).partition(".")[0] == "shunter":
                        raise
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(8)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            code = _command(caller)
            caller.sendall(str(code).encode())
            os._exit(0)
        caller.close()


def _command(caller: socket.socket) -> int:
    said, streams, _, _ = socket.recv_fds(caller, 1, 3)
    while part := caller.recv(1 << 16):
        said += part
    asked = json.loads(said)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["shunter", *asked["args"]]
    try:
        from shunter.cli.main import main as shunter

        return shunter(asked["args"])
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1])
