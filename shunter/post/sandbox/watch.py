"""What all processes of a program take, looked at through /proc while it runs. Standard library alone.

When a program has ended, the kernel tells the time of it and of the children that were waited for. Children
that nobody waits for (their signal is ignored, or they are still there at the end) are in no sum, so their
times are read while they live. Memory is read too: some runtimes reserve far more than they use, so that
their address space says nothing. What is in a socket is in no process: each is counted as what it can hold.
"""

from __future__ import annotations

import os
import socket
import time

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
with socket.socket(socket.AF_UNIX) as _one:
    SOCKET = _one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)  # bytes; `calls` lets nobody change it
MARGIN = 1.5  # an estimate is held against so many times the limit


class Watch:
    """The processes of a program: those in the namespace that this process makes for its children; and the
    sockets of the network that this process is in, but for those that were there before: of an earlier
    program, which the kernel has not yet cleared away. Make it before the program is there.

    spent: CPU seconds that were seen; at most a tick (10 ms) a process too few. guessed: with what is likely
    to have gone unseen. A process that is running when it is first seen stands for all like it that came and
    went since the look before, so it counts for the whole time between: in the mean that is right for
    children of any length, and one look may be wrong by that time.
    """

    def __init__(self, proc: int, seconds: float, memory: int) -> None:
        """proc: a descriptor of /proc. seconds, memory (bytes): of all processes together."""
        # A descriptor of our own: reading a folder moves a place that its copies share.
        self.proc = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
        self.network = os.open("self/net/unix", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        self.before = self._sockets()
        self.seconds, self.memory = seconds, memory
        self.every = min(0.05, max(0.005, seconds / 50))
        self.last = time.monotonic()
        self.due = self.last + self.every
        self.spent = self.guessed = 0.0
        self._space = ""
        self._seen: dict[tuple[int, int], float] = {}  # process and when it began -> its seconds

    def look(self) -> str | None:
        """Look, if it is time to. `timeout` or `memory` when the program is to be ended for it."""
        now = time.monotonic()
        if now < self.due:
            return None
        resident = 0
        found = self._processes()
        for pid in found:
            try:
                state, began, seconds, pages = self._stat(pid)
            except OSError:  # it has ended
                continue
            before = self._seen.get((pid, began))
            used = seconds - (before or 0.0)
            self._seen[pid, began] = seconds
            self.spent += used
            new = before is None and state == b"R" and len(self._seen) > 1
            self.guessed += max(used, now - self.last) if new else used
            resident += pages * PAGE
        sockets = self._sockets()
        self.before = min(self.before, sockets)  # those that the kernel clears away make no room for others
        memory = self.memory - SOCKET * (sockets - self.before)
        if resident > memory:
            resident = sum(self._own(pid) for pid in found)
        self.last, self.due = now, time.monotonic() + self.every
        if resident > memory:
            return "memory"
        return "timeout" if self.late() else None

    def late(self) -> bool:
        """Whether what was seen is more than the program may take."""
        return self.spent > self.seconds or self.guessed > MARGIN * self.seconds

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.proc)
        os.close(self.network)

    def _sockets(self) -> int:
        """How many there are: a line each, also of those that no process has, as before they are accepted."""
        os.lseek(self.network, 0, os.SEEK_SET)
        lines = 0
        while part := os.read(self.network, 1 << 16):
            lines += part.count(b"\n")
        return lines

    def _processes(self) -> list[int]:
        if not self._space:
            self._space = self._link("self/ns/pid_for_children")
            if not self._space:
                return []
        names = [name for name in os.listdir(self.proc) if name.isdigit()]
        return [int(name) for name in names if self._link(f"{name}/ns/pid") == self._space]

    def _link(self, path: str) -> str:
        try:
            return os.readlink(path, dir_fd=self.proc)
        except OSError:
            return ""  # it has ended

    def _read(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            return os.read(fd, 1 << 12)
        finally:
            os.close(fd)

    def _stat(self, pid: int) -> tuple[bytes, int, float, int]:
        """State, beginning, own CPU seconds and resident pages (proc(5); the name may hold brackets)."""
        said = self._read(f"{pid}/stat").rsplit(b")", 1)[1].split()
        return said[0], int(said[19]), (int(said[11]) + int(said[12])) / TICK, int(said[21])

    def _own(self, pid: int) -> int:
        """Bytes of a process that are no file's: what forks share of a file is not theirs."""
        try:
            _, resident, shared = self._read(f"{pid}/statm").split()[:3]
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * PAGE
