"""Calls of Linux that Python's library has no name for. Standard library alone."""

from __future__ import annotations

import ctypes
import os
import struct

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
SET_DEATH_SIGNAL, SET_NO_NEW_PRIVS, SET_SECCOMP = 1, 38, 22
DETACH = 2
MOUNT_SETATTR, HERE, RECURSIVE = 442, -100, 0x8000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def check(result: int, what: str) -> None:
    """Raise OSError when a call of the C library failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2): namespaces of our own."""
    check(libc.unshare(flags), "unshare")


def enter(namespace: int) -> None:
    """setns(2): into a namespace of the network that is open."""
    check(libc.setns(namespace, NEWNET), "setns")


def mount(source: str, target: str, flags: int, kind: str | None = None, data: str = "") -> None:
    """mount(2)."""
    made = libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode())
    check(made, f"mount {target}")


def detach(target: str) -> None:
    """umount(2), at once; what is open of it stays open."""
    check(libc.umount2(target.encode(), DETACH), f"umount {target}")


def read_only(target: str) -> None:
    """Let nobody write to a mount, with what is mounted below it where the kernel can (5.12)."""
    wanted = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    if libc.syscall(MOUNT_SETATTR, HERE, target.encode(), RECURSIVE, wanted, len(wanted)) != 0:
        mount("none", target, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def pivot_root(root: str) -> None:
    """Make the mount at `root` the root of this mount namespace, and drop the old one from it."""
    os.chdir(root)
    try:
        # Old and new at one place: the old one lies on top, and is taken away.
        check(libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    except OSError:
        # A root that was unpacked into memory cannot be moved. Nothing we run may make a namespace or open
        # a descriptor of ours, which is how one leaves a root of this kind.
        if os.geteuid() != 0:
            raise
        os.chroot(".")
    else:
        detach(".")
    os.chdir("/")


def die_with_parent() -> None:
    """Be killed when the process that has forked this one ends."""
    libc.prctl(SET_DEATH_SIGNAL, 9, 0, 0, 0)


def no_capabilities() -> None:
    """Give up all of them; the header is that of version 3, for this process."""
    check(libc.capset(struct.pack("II", 0x20080522, 0), struct.pack("6I", *[0] * 6)), "capset")
