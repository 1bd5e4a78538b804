"""A control group (cgroup v2) under which each untrusted program gets one of its own, where that can be had.

A group limits a program with all its processes together, memory in files and pipes included; resource
limits, which are always set as well, are a process each. Root of a machine with systemd has groups; a
container has them where they are writable and hand on memory and processes. Version 1 is not used.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NEEDED = ("memory", "pids")
PROC = Path("/proc/self")


def make(name: str, proc: Path = PROC) -> Path | None:
    """A new group that hands on memory and processes; None where there can be none.

    It is made under the nearest group above this process that hands them on itself: a group with processes
    in it cannot, and nobody is moved out of one.
    """
    with suppress(OSError, StopIteration, ValueError, IndexError):
        mount, at = _place(proc)
        while at == mount or mount in at.parents:
            offered = (at / "cgroup.subtree_control").read_text(encoding="utf-8").split()
            if set(NEEDED) <= set(offered):
                made = at / name
                made.mkdir()
                try:
                    hand_on = " ".join(f"+{each}" for each in NEEDED)
                    (made / "cgroup.subtree_control").write_text(hand_on, encoding="utf-8")
                except OSError:
                    remove(made)
                    return None
                return made
            at = at.parent
    return None


def remove(group: Path) -> None:
    """Remove a group and those of programs in it, as far as nothing runs there any more."""
    with suppress(OSError):
        for each in group.iterdir():
            if each.is_dir():
                with suppress(OSError):
                    os.rmdir(each)
        os.rmdir(group)


def _place(proc: Path) -> tuple[Path, Path]:
    """Where groups are mounted, and the group of this process. Raises StopIteration where there are none."""
    mounts = (line.split() for line in (proc / "mountinfo").read_text(encoding="utf-8").splitlines())
    root, mount = next((words[3], words[4]) for words in mounts if words[words.index("-") + 1] == "cgroup2")
    lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    mine = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    return Path(mount), Path(mount + "/" + os.path.relpath(mine, root))
