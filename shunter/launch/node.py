"""On each machine of an ssh launch: `python -m shunter.launch.node ARGUMENTS` runs torchrun with these.

It listens to its standard input, which is the ssh connection: `stop` asks the run to save, `kill` ends it
now, and the end of the input (the launcher or the connection is gone) counts as `stop`. It ends with the exit
code of the run, which torchrun itself does not pass on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from shunter.launch import elastic
from shunter.launch.place import END

SHUTDOWN = 600  # seconds that processes get to save, before torchrun kills them


def torchrun(*, nodes: int, per_node: int, node: int, address: str, port: int) -> list[str]:
    """torchrun's arguments on one of several machines."""
    return [
        f"--nnodes={nodes}", f"--nproc-per-node={per_node}", f"--node-rank={node}",
        f"--master-addr={address}", f"--master-port={port}",
        "--max-restarts=0", f"--shutdown-timeout={SHUTDOWN}",
    ]  # fmt: skip


def main(arguments: Sequence[str], commands: TextIO) -> int:
    """Run torchrun until it ends or is ended by a command. Returns the exit code: 2 for a name of the first
    machine that this one does not know."""
    address = next(word.partition("=")[2] for word in arguments if word.startswith("--master-addr="))
    try:
        socket.getaddrinfo(address, None)
    except OSError:
        mend = "Give an address that all machines reach with --address."
        print(f"error: the first machine's address {address!r} is not known here. {mend}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        end = Path(folder) / "end"
        agent = _Agent(arguments, end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: agent.stop())
        threading.Thread(target=agent.obey, args=(commands,), daemon=True).start()
        code = agent.process.wait()
        with suppress(OSError, ValueError):
            return int(end.read_text())
        return 128 - code if code < 0 else code


class _Agent:
    def __init__(self, arguments: Sequence[str], end: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *arguments], stdin=subprocess.DEVNULL,
            env={**os.environ, END: str(end)}, start_new_session=True, preexec_fn=elastic.die_with_parent,
        )  # fmt: skip
        self._stopped = False

    def obey(self, commands: TextIO) -> None:
        for line in commands:
            if line.strip() == "kill":
                # Its processes lead sessions of their own, and end when they see that it is gone.
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                return
            self.stop()
        self.stop()

    def stop(self) -> None:
        """Once: a second signal would interrupt torchrun while it waits for its processes to save."""
        if not self._stopped and self.process.poll() is None:
            self._stopped = True
            self.process.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin))
