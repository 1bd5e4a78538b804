"""Where programs live: a file system of its own, user ids that nothing else has. Standard library alone.

There are two ways to have the rights for that. The superuser gives each program a user id of a block that
this zygote alone holds. Anybody else makes a user namespace, where the kernel lets them, and in it one more
for each program: there it has an id and counts of processes that are its own, and no rights over anything.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from shunter.post.sandbox import kernel
from shunter.post.sandbox.kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC

# User ids of programs: blocks that one zygote of the machine holds, above those that systems give away; the
# second range is for containers that have 65536 ids.
USERS, RANGES = 256, ((200000, 1000), (61184, 16))
INSIDE = 1000  # the id of a program in a user namespace of its own
SYSTEM = ("/bin", "/lib", "/lib64", "/sbin")
SINGLE = ("/usr", "/etc/ld.so.cache", "/etc/alternatives", "/dev/null", "/dev/zero", "/dev/urandom")


class Users:
    """Who programs are. number: of a place in the block, as the zygote sees it; 0: its own, in a
    namespace."""

    def __init__(self, first: int) -> None:
        self.first = first

    def number(self, place: int) -> int:
        return self.first + place if self.first else 0

    def become(self, user: int, proc: int) -> None:
        """Let this process be a program of that user, who can be nobody else from here on."""
        if user:
            os.setgroups([])
        else:
            kernel.unshare(kernel.NEWUSER)
            mapped(proc, INSIDE, 0, 0)
            user = INSIDE
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        kernel.no_capabilities()


def mapped(proc: int, inside: int, user: int, group: int) -> None:
    """Say who this process is in the user namespace that it has just made; there is nobody else in it.
    user, group: what it was before."""
    for name, said in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {user} 1"),
        ("gid_map", f"{inside} {group} 1"),
    ):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, said.encode())
        finally:
            os.close(fd)


def enter() -> Users:
    """Get the rights to make namespaces, and one of processes for what this process forks next.

    Raises OSError where the kernel does not give them.
    """
    if os.geteuid() == 0:
        users = Users(block())
        with suppress(PermissionError):
            kernel.unshare(kernel.NEWPID)
            return users
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEWUSER | kernel.NEWPID)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    mapped(proc, 0, user, group)
    os.close(proc)
    return Users(0)


def block() -> int:
    """The first id of a block of USERS user ids that no other zygote of this machine holds.

    The limit on processes is counted by user id: with a shared one, a program would spend another's. The lock
    is held by this process and its forks. Containers with file systems of their own do not see each other.
    Raises OSError when all are held, or none can be.
    """
    with open("/proc/self/uid_map") as file:
        there = [(int(a), int(a) + int(n)) for a, _, n in (line.split() for line in file)]
    folder = "/run/shunter-users" if os.access("/run", os.W_OK) else tempfile.gettempdir() + "/shunter-users"
    own_folder(folder)
    for first, blocks in RANGES:
        for number in range(blocks):
            begin = first + number * USERS
            if not any(low <= begin and begin + USERS <= high for low, high in there):
                break
            lock = os.open(f"{folder}/{begin}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return begin
            except BlockingIOError:
                os.close(lock)
    raise OSError("no block of user ids is free")


def own_folder(folder: str) -> None:
    """Make a folder that nobody else can write to. Raises OSError where somebody else has made it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder that only this user can write to")


def show(path: str, root: str, inside: str = "") -> None:
    """Show a folder or file of the system in the jail, read-only."""
    target = root + (inside or path)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a"):
            pass
    kernel.mount(path, target, MS_BIND | MS_REC)
    kernel.read_only(target)


def build(toys: str, paths: Sequence[str]) -> int:
    """Move into a file system of our own, out of everybody's sight, without network. paths: what is shown
    beside the system's programs. A descriptor of /proc, which is not in it. Raises OSError where that cannot
    be."""
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWUTS | kernel.NEWIPC)
    kernel.mount("none", "/", MS_REC | MS_PRIVATE)
    root = tempfile.mkdtemp(prefix="jail-")
    kernel.mount("tmpfs", root, MS_NOSUID | MS_NODEV, "tmpfs", "size=16m,mode=755")
    proc = processes(root)
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            show(path, root)
    shown: list[str] = []
    for path in (*SINGLE, os.path.realpath(sys.base_prefix), *paths):
        if os.path.exists(path) and not any(path == it or path.startswith(f"{it}/") for it in shown):
            show(path, root)
            shown.append(path)
    show(toys, root, "/toys")
    for path in ("/box", "/tmp", "/dev/shm", "/proc"):
        os.makedirs(root + path, 0o755, exist_ok=True)
    outside = os.open(os.path.dirname(root), os.O_RDONLY | os.O_DIRECTORY)
    kernel.pivot_root(root)
    with suppress(OSError):  # nobody needs the place any more, where the kernel lets us take it away
        os.rmdir(os.path.basename(root), dir_fd=outside)
    os.close(outside)
    tempfile.tempdir = None  # not what it was outside
    return proc


def processes(root: str) -> int:
    """A descriptor of /proc that shows the processes of our namespace alone, mounted at no place; where the
    kernel hides parts of /proc from this container it allows no new one, and the one that is there serves."""
    place = f"{root}/proc"
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    os.mkdir(place)
    try:
        kernel.mount("proc", place, MS_NOSUID | MS_NODEV | MS_NOEXEC, "proc")
        proc = os.open(place, flags)
        kernel.detach(place)
    except OSError:
        proc = os.open("/proc", flags)
    os.rmdir(place)
    return proc


def show_processes() -> None:
    """In the first process of a namespace: /proc with its processes alone, in which nothing can be changed
    but by who may change it anyway."""
    kernel.mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | kernel.MS_RDONLY, "proc")


def folders(user: int, size: int) -> str:
    """A file system for one request, seen by its processes alone, and gone with the last of them: what one
    program writes takes no space from another. Its own folder, in which the program is; beside it /tmp and
    /dev/shm. size: bytes."""
    kernel.unshare(kernel.NEWNS)
    kernel.mount("tmpfs", "/box", MS_NOSUID | MS_NODEV, "tmpfs", f"size={size},nr_inodes=8k,mode=711")
    for name, seen in (("home", ""), ("tmp", "/tmp"), ("shm", "/dev/shm")):
        place = f"/box/{name}"
        os.mkdir(place, 0o700)
        os.chown(place, user, user)
        if seen:
            kernel.mount(place, seen, MS_BIND)
    return "/box/home"
