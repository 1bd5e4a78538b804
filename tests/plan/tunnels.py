"""Network namespaces joined by a switch in this process: each link has its own delay and bandwidth, really.

Each namespace has a tun device with TCP of its own; the switch passes their packets on, each after the delay
of its link and no faster than its bandwidth. Needs the right to make namespaces (root).
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 60000


def refused() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    name = f"shunter-try-{os.getpid()}"
    try:
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    except OSError:
        return "there is no `ip` program"
    if done.returncode:
        return f"no namespaces here: {done.stderr.strip() or done.stdout.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun"


class Switch:
    """Namespaces `names[i]` with address `10.97.0.(i + 1)`.

    links: (from, to) -> (seconds, bytes a second), by number of the namespace; others pass at once.
    """

    def __init__(self, count: int, links: Mapping[tuple[int, int], tuple[float, float]]) -> None:
        self.names = [f"shunter-{os.getpid()}-{n}" for n in range(count)]
        self.links = links
        self.taps: list[int] = []
        self._free: dict[tuple[int, int], float] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._stop = False
        for number, name in enumerate(self.names):
            _ip("netns", "add", name)
            self.taps.append(_tun_in(name))
            _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "tun0")
            _ip("-n", name, "link", "set", "dev", "tun0", "mtu", str(MTU), "up", "txqueuelen", "1000")
            _ip("-n", name, "link", "set", "lo", "up")
        self._thread = threading.Thread(target=self._pass, daemon=True)
        self._thread.start()

    @staticmethod
    def address(number: int) -> str:
        return f"10.97.0.{number + 1}"

    def command(self, number: int, command: Sequence[str]) -> list[str]:
        """A command that runs in a namespace."""
        return ["ip", "netns", "exec", self.names[number], *command]

    def close(self) -> None:
        self._stop = True
        self._thread.join(5)
        for tap in self.taps:
            os.close(tap)
        for name in self.names:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], check=False)

    def _pass(self) -> None:
        count = 0
        while not self._stop:
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, target, packet = heapq.heappop(self._waiting)
                with suppress(OSError):
                    os.write(self.taps[target], packet)
            left = self._waiting[0][0] - time.monotonic() if self._waiting else 0.05
            ready, _, _ = select.select(self.taps, [], [], max(0.0, min(left, 0.05)))
            for tap in ready:
                packet = os.read(tap, MTU + 64)
                if packet[0] >> 4 != 4:
                    continue
                source, target = self.taps.index(tap), packet[19] - 1
                delay, rate = self.links.get((source, target), (0.0, 1e12))
                leaves = max(time.monotonic(), self._free.get((source, target), 0.0)) + len(packet) / rate
                self._free[source, target] = leaves
                count += 1
                if 0 <= target < len(self.taps):
                    heapq.heappush(self._waiting, (leaves + delay, count, target, packet))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _tun_in(name: str) -> int:
    """A tun device in a namespace, held by this process; a thread of its own goes there and ends."""
    found: list[int] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        place = os.open(f"/run/netns/{name}", os.O_RDONLY)
        if libc.setns(place, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(place)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
        found.append(tap)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return found[0]
