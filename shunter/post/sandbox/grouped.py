"""A control group for each untrusted program, under one that is open. Standard library alone."""

from __future__ import annotations

import os
from contextlib import suppress


def put(folder: int, name: str, value: str) -> None:
    """Write a file under a folder that is open."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
    os.write(fd, value.encode())
    os.close(fd)


def make(groups: int, name: str, memory: int, processes: int) -> None:
    """A control group for one program: memory in bytes, of all its processes together, and none on disk."""
    with suppress(FileExistsError):  # of a runner that had the same number, and ended just now
        os.mkdir(name, 0o700, dir_fd=groups)
    put(groups, f"{name}/memory.max", str(memory))
    put(groups, f"{name}/memory.oom.group", "1")
    put(groups, f"{name}/pids.max", str(processes))
    with suppress(OSError):  # not where the kernel has no swap
        put(groups, f"{name}/memory.swap.max", "0")


def end(groups: int, name: str) -> tuple[bool, float]:
    """Remove a program's group; whether something in it was killed for its memory, and its CPU seconds."""
    killed = _told(groups, f"{name}/memory.events").get("oom_kill", 0) > 0
    seconds = _told(groups, f"{name}/cpu.stat").get("usage_usec", 0) / 1e6
    with suppress(OSError):
        os.rmdir(name, dir_fd=groups)
    return killed, seconds


def _told(groups: int, name: str) -> dict[str, int]:
    try:
        fd = os.open(name, os.O_RDONLY, dir_fd=groups)
    except OSError:
        return {}
    lines = os.read(fd, 4096).decode().splitlines()
    os.close(fd)
    return {word: int(value) for word, value in (line.split() for line in lines)}
