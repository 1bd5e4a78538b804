"""A writer in a process of its own, seen from the process that learns."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout
from shunter.generate.toolbox import Toolbox
from shunter.launch import elastic
from shunter.post.roles import wire
from shunter.post.roles.overseer import RERUN
from shunter.post.writers import Hear, Weights

COMMAND = (sys.executable, "-m", "shunter.post.writing")
SILENT = 600.0  # seconds without a word after which it is given up; while it writes it speaks every 5 s
GRACE = 1.0  # seconds in which it ends by itself
LAST = 2000  # bytes of its output that are looked at


class Beside:
    """Writes in another process, with a copy of the model. Weights and requests go to it in the order in
    which they are given, on a thread: who learns waits for neither. What it has written is heard on another
    thread, and handed on in `listen`."""

    def __init__(
        self,
        model: Path,
        sampling: SamplingConfig,
        hear: Hear,
        *,
        seed: int,
        stops: Sequence[int],
        room: int,
        threads: int,
        exact: bool,
        device: str = "cpu",
        tools: Toolbox | None = None,
        timeout: float = SILENT,
    ) -> None:
        """model: a folder with its shape. room: tokens of the longest text. exact: all that was asked for is
        written before newer weights are taken. tools: whose configuration it asks; they count here."""
        self.hear, self.tools, self.timeout = hear, tools, timeout
        mine, theirs = socket.socketpair()
        self._link, self._output = mine, tempfile.TemporaryFile()  # noqa: SIM115
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        }
        with theirs:
            # A session of its own: Ctrl-C is for the learner, which then ends it.
            self._process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=self._output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                preexec_fn=elastic.die_with_parent,
            )  # fmt: skip
        self._heard = time.monotonic()
        self._said: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._asks: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._asks.put(
            {
                "model": str(model),
                "sampling": sampling.model_dump(mode="json"),
                "seed": seed,
                "stops": sorted(stops),
                "room": room,
                "threads": threads,
                "exact": exact,
                "device": device,
                "tools": None if tools is None else tools.config.model_dump(mode="json"),
            }
        )
        for work in (self._send, self._receive):
            threading.Thread(target=work, daemon=True).start()

    def renew(self, version: int, weights: Weights) -> None:
        arrays = {
            # numpy knows no bfloat16; in float32 it is the same number.
            name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            for name, value in weights.items()
        }
        self._asks.put({"do": "weights", "version": version, "weights": arrays})

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]]) -> None:
        asked = [[at, list(ids)] for at, ids in prompts.items()]
        self._asks.put({"do": "ask", "step": step, "prompts": asked})

    def listen(self, wait: bool) -> None:
        while True:
            try:
                left = max(0.0, self._heard + self.timeout - time.monotonic())
                said = self._said.get(timeout=left) if wait else self._said.get_nowait()
            except queue.Empty:
                if not wait:
                    return
                if time.monotonic() - self._heard < self.timeout:
                    continue
                raise ShunterError(
                    f"no word from the process that writes for {self.timeout:g} s", mend=RERUN
                ) from None
            if "failed" in said:
                raise self._failure(said)
            if "ended" in said:
                raise self._ended()
            for step, rows in said.get("answers", ()):
                self.hear(int(step), {int(at): Rollout(**values) for at, values in rows})
                wait = False
            if self.tools is not None and "tools" in said:
                self.tools.calls += said["tools"][0]
                self.tools.failed += said["tools"][1]

    def close(self) -> None:
        self._asks.put(None)
        with suppress(OSError):  # it may be gone
            self._link.shutdown(socket.SHUT_RDWR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._link.close()
        self._output.close()

    def _send(self) -> None:
        try:
            while (message := self._asks.get()) is not None:
                wire.send(self._link, message)
        except wire.Closed:
            pass  # the other thread tells

    def _receive(self) -> None:
        try:
            while True:
                said, _ = wire.receive(self._link)
                self._heard = time.monotonic()
                self._said.put(said)
        except (wire.Closed, ValueError):
            self._said.put({"ended": True})

    @staticmethod
    def _failure(said: Mapping[str, Any]) -> Exception:
        if said["user"]:
            return ShunterError(said["what"], where=said["where"], mend=said["mend"])
        return RuntimeError(f"the process that writes failed:\n{said['traceback']}")

    def _ended(self) -> ShunterError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        code = self._process.poll()
        how = "closed its connection"
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - LAST))
        last = self._output.read().decode("utf-8", "replace").strip()
        shown = f"; it said last: {last.splitlines()[-1][:300]}" if last else ""
        return ShunterError(f"the process that writes {how}{shown}", mend=RERUN)
