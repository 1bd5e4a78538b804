"""Writers in processes of their own, seen from the process that learns."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout
from shunter.generate.toolbox import Toolbox
from shunter.launch import elastic
from shunter.models.footprint import BLOCK
from shunter.post.cores import Cores
from shunter.post.parcel import Parcel
from shunter.post.roles import wire
from shunter.post.roles.overseer import RERUN
from shunter.post.writers import Hear, Rollouts, Weights, arrays

COMMAND = (sys.executable, "-m", "shunter.post.writing")
SILENT = 600.0  # seconds without a word after which it is given up; while it writes it speaks every 5 s
GRACE = 1.0  # seconds in which it ends by itself
LAST = 2000  # bytes of its output that are kept
# Looks of a thread for more to do before it sleeps, about 0.3 ms: 8 ms by default, on a core that is lent.
SPIN = "10000"

Said = queue.SimpleQueue[tuple["Beside", Mapping[str, Any]]]


class Beside:
    """Writes in another process, with a copy of the model. Weights and requests go to it in the order in
    which they are given, on a thread: who learns waits for neither. What it has written is heard on another
    thread, and handed on in `listen`."""

    beside = True

    def __init__(
        self,
        model: Path,
        journal: Path,
        sampling: SamplingConfig,
        hear: Hear,
        *,
        seed: int,
        stops: Sequence[int],
        room: int,
        threads: int,
        exact: bool,
        whole: bool = False,
        device: str = "cpu",
        precision: str = "fp32",
        tools: Toolbox | None = None,
        server: Mapping[str, Any] | None = None,
        timeout: float = SILENT,
        said: Said | None = None,
        block: int = BLOCK,
        cache: int = 0,
        cores: Cores | None = None,
        place: int = 0,
    ) -> None:
        """model: a folder with its shape. journal: folder for answers, where it has files of its own. room:
        tokens of the longest text. exact: with the same bits each time. whole, and exact: all that was asked
        for is written before newer weights are taken. tools: whose configuration it asks; they count here.
        server: that writes in its place: `kind`, `config`, `folder`, and what `save_model` is told
        (`special`). precision: of the learner. timeout: seconds without a word, while it owes something.
        said: a queue that it shares. block, cache: as in `Reinforcement`. cores: that it shares, as the one
        of this place among all; None: it has `threads`, whoever waits."""
        self.hear, self.tools, self.timeout = hear, tools, timeout
        self.cores, self.place = cores, place
        mine, theirs = socket.socketpair()
        self._link, self._last = mine, b""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        }
        handed = [theirs.fileno()]
        if cores is not None:
            handed.append(cores.file)
            if "OMP_WAIT_POLICY" not in environment:
                environment.setdefault("GOMP_SPINCOUNT", SPIN)
        try:
            with theirs:
                # A session of its own: Ctrl-C is for the learner, which then ends it.
                self._process = subprocess.Popen(
                    [*COMMAND, str(theirs.fileno())], pass_fds=handed, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                    preexec_fn=elastic.die_with_parent,
                )  # fmt: skip
        except BaseException:
            mine.close()
            raise
        self.heard, self.owes, self.memory = time.monotonic(), 0, 0
        self._counting = threading.Lock()  # of what it owes
        self.said: Said = said or queue.SimpleQueue()
        self._asks: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        # Its files are nobody else's, as one of an earlier attempt may end with half a line.
        name = f"w{time.time_ns() // 1000:016d}"
        self._asks.put(
            {
                "model": str(model),
                "journal": str(journal),
                "name": name,
                "sampling": sampling.model_dump(mode="json"),
                "seed": seed,
                "stops": sorted(stops),
                "room": room,
                "block": block,
                "cache": cache,
                "threads": threads,
                "cores": None if cores is None else [cores.file, cores.cores, cores.processes, place],
                "exact": exact,
                "whole": whole,
                "device": device,
                "precision": precision,
                "server": server,
                "tools": None if tools is None else tools.config.model_dump(mode="json"),
            }
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        for work in (self._send, self._receive):
            threading.Thread(target=work, daemon=True).start()

    def renew(self, version: int, weights: Weights) -> None:
        self.hand(version, Parcel(arrays(weights)))

    def hand(self, version: int, parcel: Parcel) -> None:
        """As `renew`, with weights that others get too."""
        self._asks.put({"do": "weights", "version": version, "weights": parcel})

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]], begun: Rollouts) -> None:
        with self._counting:
            if not self.owes:
                self.heard = time.monotonic()  # it had no reason to speak before
            self._owe(len(prompts))
        asked = [[at, list(ids)] for at, ids in prompts.items()]
        parts = [[at, vars(one)] for at, one in begun.items()]
        self._asks.put({"do": "ask", "step": step, "prompts": asked, "begun": parts})

    def listen(self, wait: bool) -> None:
        listen([self], self.said, wait)

    def take(self, said: Mapping[str, Any]) -> bool:
        """Hand on what it said; whether that were answers. Raises what has ended it, or a thread here."""
        if "error" in said:
            raise said["error"]
        if "failed" in said:
            raise self._failure(said)
        if "ended" in said:
            raise self._ended()
        self.memory = max(self.memory, int(said.get("memory", 0)))
        if self.tools is not None and "tools" in said:
            self.tools.count(*said["tools"])
        for step, rows in said.get("answers", ()):
            with self._counting:
                self._owe(-len(rows))
            self.hear(int(step), {int(at): Rollout(**values) for at, values in rows})
        return "answers" in said

    def _owe(self, more: int) -> None:
        """It waits while it owes nothing, by this end's count, which knows before the other end hears."""
        self.owes += more
        if self.cores is not None:
            self.cores.set(self.place, waits=not self.owes)

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
        self._reader.join(GRACE)  # else what it has started holds the other end

    def _send(self) -> None:
        try:
            while (message := self._asks.get()) is not None:
                if message.get("do") == "weights":
                    message["weights"].send(self._link, {**message, "weights": None}, "weights")
                else:
                    wire.send(self._link, message)
        except wire.Closed:
            pass  # the other thread tells
        except BaseException as error:
            self.said.put((self, {"error": error}))

    def _receive(self) -> None:
        try:
            while True:
                told, _ = wire.receive(self._link)
                self.heard = time.monotonic()
                self.said.put((self, told))
        except wire.Closed:
            self.said.put((self, {"ended": True}))
        except BaseException as error:  # who waits would wait for a thread that is gone
            self.said.put((self, {"error": error}))

    def _read(self) -> None:
        """Its output, of which the end is kept."""
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while said := os.read(output.fileno(), LAST):
                self._last = (self._last + said)[-LAST:]

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
        self._reader.join(GRACE)
        last = self._last.decode("utf-8", "replace").strip()
        shown = f"; it said last: {last.splitlines()[-1][:300]}" if last else ""
        return ShunterError(f"the process that writes {how}{shown}", mend=RERUN)


class Several:
    """Several processes that write. Answers to one prompt are written by one of them, by the one that owes
    least: who is slower is asked for less."""

    beside = True

    def __init__(self, writers: Sequence[Beside], group: int) -> None:
        """writers: with one queue. group: answers to a prompt, whose places follow each other."""
        self.writers, self.group, self.said = writers, group, writers[0].said

    @property
    def memory(self) -> int:
        """Of the largest one."""
        return max(each.memory for each in self.writers)

    def renew(self, version: int, weights: Weights) -> None:
        parcel = Parcel(arrays(weights))
        for each in self.writers:
            each.hand(version, parcel)

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]], begun: Rollouts) -> None:
        groups: dict[int, dict[int, Sequence[int]]] = {}
        for at, ids in prompts.items():
            groups.setdefault(at // self.group, {})[at] = ids
        parts: list[dict[int, Sequence[int]]] = [{} for _ in self.writers]
        for some in groups.values():
            owed = [each.owes + len(part) for each, part in zip(self.writers, parts, strict=True)]
            parts[owed.index(min(owed))].update(some)
        for each, part in zip(self.writers, parts, strict=True):
            if part:
                each.ask(step, part, {at: one for at, one in begun.items() if at in part})

    def listen(self, wait: bool) -> None:
        listen(self.writers, self.said, wait)

    def close(self) -> None:
        for each in self.writers:
            each.close()


def listen(writers: Sequence[Beside], said: Said, wait: bool) -> None:
    """Hand on what writers with one queue have said; wait: until some of it are answers."""
    patience = min(1.0, *(each.timeout for each in writers))
    while True:
        try:
            who, what = said.get(timeout=patience) if wait else said.get_nowait()
        except queue.Empty:
            if not wait:
                return
            for each in writers:
                if each.owes and time.monotonic() - each.heard > each.timeout:
                    raise ShunterError(
                        f"no word from the process that writes for {each.timeout:g} s", mend=RERUN
                    ) from None
            continue
        if who.take(what):
            wait = False
