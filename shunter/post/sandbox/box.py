"""Runs programs that nobody vouches for, from a zygote that stays clean."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.post.sandbox import groups
from shunter.post.sandbox.jail import USERS
from shunter.post.sandbox.languages import TOYS, Language

ENTRY = Path(__file__).parent / "entry.py"
PACKAGE = Path(__file__).parents[3]
START = 60.0  # seconds within which the zygote must be ready
END = 10.0  # and those in which it ends when it is told to
# A program that waits uses no CPU seconds: a case ends after so many times of them by the clock, or LEAST.
# All cases of a program have one clock too, so that it does not wait in each anew. For each case after the
# first it has FURTHER times the CPU seconds: as many as a program can spend, beside one that does the same.
WALL, LEAST, FURTHER = 10.0, 5.0, 2.0
LENGTH = struct.Struct("!Q")  # before each reply, as the zygote writes it
MIB = 1 << 20
FILES = 32 * MIB  # of a program's own file system at least; an eighth of its memory where that is more


@dataclass(frozen=True)
class Program:
    """What to run, and what to give it, case by case. seconds: CPU time of each case. By the clock a case has
    `wall` seconds; None: ten times as long, at least 5 s. All cases have that and twice `seconds` for each
    further one."""

    language: Language
    code: str
    inputs: Sequence[str]
    seconds: float = 2.0
    wall: float | None = None


@dataclass(frozen=True)
class Case:
    """How one case ended: ok, error, timeout, output (too much of it: here is its beginning), memory (too
    much), or one of these after `compile-`."""

    status: str
    output: str
    code: int
    errors: str


class Sandbox:
    """A zygote and the programs forked from it. Use it as a context, or `close` it.

    A program runs in a fork that is used once, as a user id of its own, in namespaces of its own (processes,
    IPC, mounts), without network, in a file system that holds the system's programs, read-only, its own
    folder, /tmp and /dev/shm, with limits on CPU time, memory, processes, files and output. Nothing that it
    starts outlives it, and nothing outlives the sandbox, however that or this process ends. Programs that run
    side by side share the cores: a greedy one may slow others down, which CPU time does not count.
    Raises ShunterError where the machine does not allow that: then nothing untrusted is run at all.

    limits: by what a program's memory and processes are limited. `cgroup`: by the kernel, all of a program
    together (version 2); `resource limits`: each process by the kernel, all together by looking at them.
    """

    def __init__(self, *, slots: int = 0, output: int = 1 << 20, grouped: bool = True) -> None:
        """slots: programs that run side by side, 256 at most; 0: one a core. output: bytes. grouped: with
        control groups, where there are any."""
        self.slots = min(slots or len(os.sched_getaffinity(0)), USERS)
        self.output = output
        self.paths: tuple[str, ...] = ()  # what languages show beside the system's programs
        self.starts = self._sent = 0
        self.limits = "cgroup" if grouped else "resource limits"
        self._group: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._start()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote, and what runs with it; returns when nothing of it is left."""
        if self._control is not None:
            # Forks of this process may hold the socket too: `close` alone would tell the zygote nothing.
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._group is not None:
            groups.remove(self._group)
            self._group = None

    def run(self, programs: Sequence[Program]) -> list[list[Case]]:
        """The cases of each program in order; those after one that did not end well are not run.

        A program with which its supervisor dies again and again, at last alone, has ended with an error.
        Raises ShunterError when no zygote can be started.
        """
        found: dict[int, list[Case]] = {}
        more = {path for program in programs for path in program.language.paths} - set(self.paths)
        if more:  # a jail is built once: another one
            self.paths = (*self.paths, *sorted(more))
            self._start()
        everything = list(range(len(programs)))
        # Side by side twice: the fault may have been a neighbour's, or the machine's.
        for together in (everything, everything, *([i] for i in everything)):
            waiting = [i for i in together if i not in found]
            if not waiting:
                continue
            if self._process is None or self._process.poll() is not None:
                self._start()
            self._run(waiting, programs, found)
        lost = [Case("error", "", -1, "what watches over the program was killed with it")]
        return [found.get(i, lost) for i in everything]

    def _run(self, waiting: list[int], programs: Sequence[Program], found: dict[int, list[Case]]) -> None:
        """As many side by side as there are slots."""
        active: dict[socket.socket, tuple[int, list[bytes], float]] = {}
        slots: dict[socket.socket, int] = {}
        chosen = selectors.DefaultSelector()
        try:
            while waiting or active:
                while waiting and len(active) < self.slots:
                    number = waiting.pop(0)
                    request = self._request(programs[number])
                    slot = min(set(range(self.slots)) - set(slots.values()))
                    ours = self._send(request, slot)
                    slots[ours] = slot
                    active[ours] = (number, [], time.monotonic() + request["ends"] + 60.0)
                    chosen.register(ours, selectors.EVENT_READ)
                for key, _ in chosen.select(timeout=1.0):
                    ours = key.fileobj  # type: ignore[assignment]
                    number, said, _ = active[ours]
                    if part := ours.recv(1 << 16):
                        said.append(part)
                        continue
                    chosen.unregister(ours)
                    ours.close()
                    del active[ours], slots[ours]
                    if cases := reply(b"".join(said)):  # else its supervisor was killed: once more
                        found[number] = cases
                if any(time.monotonic() > limit for _, _, limit in active.values()):
                    self.close()  # a supervisor that says nothing: all is begun anew
                    return
        except OSError:
            self.close()  # the zygote is gone
        finally:
            for ours in active:
                ours.close()

    def _send(self, request: dict[str, Any], slot: int = 0) -> socket.socket:
        """Hand a request to a new supervisor; returns where its reply comes. slot: that no other one has."""
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            who = user(slot, self.slots, self._sent)
            socket.send_fds(self._control, [bytes([slot, who])], [theirs.fileno()])
        self._sent += 1
        ours.sendall(json.dumps(request).encode())
        ours.shutdown(socket.SHUT_WR)
        return ours

    def _request(self, program: Program) -> dict[str, Any]:
        language, wall = program.language, program.wall or max(LEAST, WALL * program.seconds)
        whole = wall + FURTHER * program.seconds * max(0, len(program.inputs) - 1)
        command = None if language.compile is None else language.words(language.compile)
        memory = language.memory * MIB
        space = max(memory, (language.address_space or 0) * MIB)
        limits = {
            "seconds": program.seconds,
            "wall": wall,
            "memory": memory,
            "address_space": space,
            "output": self.output,
            "processes": language.processes,
            "proc": language.proc,
            "files": max(FILES, memory // 8),
        }
        compiling = {
            "seconds": language.compile_seconds,
            "wall": max(LEAST, WALL * language.compile_seconds),
            "memory": 4 * memory,
            "address_space": 4 * space,
        }
        return {
            "filename": language.filename,
            "code": program.code,
            "compile": command,
            "compiling": compiling,
            "execute": language.words(language.execute),
            "inputs": list(program.inputs),
            "limits": limits,
            "wall": whole,
            "ends": whole + (compiling["wall"] if command else 0),
        }

    def _start(self) -> None:
        self.close()
        self.starts += 1
        if self.limits == "cgroup":
            self._group = groups.make(f"shunter-{os.getpid()}-{id(self):x}-{self.starts}")
        refused = self._begin()
        if refused is not None and self._group is not None:
            # Groups that do not do what they should are none.
            self.close()
            refused = self._begin()
        self.limits = "resource limits" if self._group is None else "cgroup"
        if refused is not None:
            self.close()
            raise ShunterError(
                f"untrusted programs cannot be run here: {refused}",
                mend="Allow user namespaces (sysctl user.max_user_namespaces; on Ubuntu "
                "kernel.apparmor_restrict_unprivileged_userns=0), run as root in a container that may make "
                "namespaces, or leave out what runs programs: rewards of code and checkers, and the tool "
                "python.",
            )

    def _begin(self) -> str | None:
        """Start a zygote; why it refuses."""
        self._control, theirs = socket.socketpair()
        group = [] if self._group is None else [str(self._group)]
        with theirs:
            # Neither the environment, a folder nor an installed package has a say in what the zygote is: -I,
            # but for the seed of hashes, so that a program that prints a set prints the same again.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-s",
                    "-S",
                    str(ENTRY),
                    str(theirs.fileno()),
                    str(TOYS),
                    json.dumps(self.paths),
                    str(PACKAGE),
                    *group,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
        self._control.settimeout(START)
        try:
            line = self._control.recv(1 << 12)
        except OSError:
            line = b""
        told = json.loads(line) if line else {"refused": "the process that forks them does not start"}
        self._control.settimeout(None)
        refused: str | None = told.get("refused")
        return refused


def user(slot: int, slots: int, request: int) -> int:
    """Which of the zygote's users the n-th request is, of those that its slot has for itself: processes are
    counted by user, and what one program holds must not be taken from another that runs beside it.

    A slot has several, where there are enough: of a supervisor that was killed, the program may still be
    ending when the slot is given away.
    """
    return slot + slots * (request % (USERS // slots))


def reply(said: bytes) -> list[Case] | None:
    """The cases of a reply; None for one that is not whole, as of a supervisor that was killed."""
    if len(said) < LENGTH.size or len(said) - LENGTH.size != LENGTH.unpack_from(said)[0]:
        return None
    cases = json.loads(said[LENGTH.size :])
    return [Case(c["status"], c["output"], c["code"], c["errors"]) for c in cases]
