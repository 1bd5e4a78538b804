"""The process from which every untrusted program is forked. Standard library alone; it imports no shunter.

It builds a jail once (the system's programs read-only, no network, no /proc), preloads what programs usually
import, and then only forks. A program runs as the first process of a pid namespace, with memory, IPC and a
file system of its own, as a user id that nothing else has, with limits, without any descriptor of ours. All
its descendants end with it. No answer comes here: outputs are compared elsewhere.

    zygote                    clean; takes descriptors and forks, reads nothing
      supervisor              one a request: writes the file, compiles, runs each case
        runner                one a case: new pid namespace; reads the output, kills
          program             user id of its own, limits
"""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import ctypes
import fcntl
import importlib
import importlib.util
import json
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
SET_DEATH_SIGNAL, SET_NO_NEW_PRIVS = 1, 38
DETACH = 2
# User ids of programs: blocks that one zygote of the machine holds, above those that systems give away; the
# second range is for containers that have 65536 ids.
USERS, RANGES = 256, ((200000, 1000), (61184, 16))
PROGRAM_GOES, ZYGOTE_GOES = 1000, 300  # where memory ends, what we run goes first
MOUNT_SETATTR, HERE, RECURSIVE = 442, -100, 0x8000
FILES = 64
PRELOADED = (
    "array bisect collections copy dataclasses datetime decimal enum fractions functools heapq io itertools "
    "json math operator random re statistics string textwrap typing"
)


class Lost(Exception):
    """What watched over a program was killed, for want of memory perhaps: it is not the program's fault."""


class Outside(NamedTuple):
    """Descriptors of what is not in the jail. proc: /proc. groups: a control group that hands on memory and
    processes, under which each program gets one of its own; -1: there is none."""

    proc: int
    groups: int


libc = ctypes.CDLL(None, use_errno=True)


def beside(name: str) -> Any:
    """A module that stands beside this file, which runs without any package."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


refusals, grouped = beside("refusals"), beside("grouped")
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def check(result: int, what: str) -> None:
    """Raise OSError when a call of the C library failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, flags: int, kind: str | None = None, data: str = "") -> None:
    """mount(2)."""
    made = libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode())
    check(made, f"mount {target}")


def bind(path: str, root: str, inside: str = "") -> None:
    """Show a folder or file of the system in the jail, read-only."""
    target = root + (inside or path)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a"):
            pass
    mount(path, target, MS_BIND | MS_REC)
    # With what is mounted below it, where the kernel can (5.12).
    wanted = struct.pack("QQQQ", 3, 0, 0, 0)  # read-only, no set-user-id
    if libc.syscall(MOUNT_SETATTR, HERE, target.encode(), RECURSIVE, wanted, len(wanted)) == 0:
        return
    mount(path, target, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def build_jail(toys: str) -> None:
    """Move into a file system of our own, out of everybody's sight. Raises OSError where that cannot be."""
    check(libc.unshare(NEWNS | NEWNET | NEWUTS | NEWIPC), "unshare")
    mount("none", "/", MS_REC | MS_PRIVATE)
    root = tempfile.mkdtemp(prefix="jail-")
    mount("tmpfs", root, MS_NOSUID | MS_NODEV, "tmpfs", "size=128m,mode=755")
    for path in ("/bin", "/lib", "/lib64", "/sbin"):
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            bind(path, root)
    bind("/usr", root)
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr"):
        bind(prefix, root)
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/dev/null", "/dev/zero", "/dev/urandom"):
        if os.path.exists(path):
            bind(path, root)
    bind(toys, root, "/toys")
    os.mkdir(root + "/box", 0o711)
    for each in ("/tmp", "/dev/shm"):  # where each program finds its own
        os.makedirs(root + each, exist_ok=True)
    os.chroot(root)
    os.chdir("/")


def block() -> int:
    """The first id of a block of USERS user ids that no other zygote of this machine holds.

    The limit on processes is counted by user id: with a shared one, a program would spend another's. The lock
    is held by this process and its forks. Containers with file systems of their own do not see each other.
    Raises OSError when all are held, or none can be.
    """
    with open("/proc/self/uid_map") as file:
        there = [(int(a), int(a) + int(n)) for a, _, n in (line.split() for line in file)]
    folder = "/run/shunter-users" if os.access("/run", os.W_OK) else tempfile.gettempdir() + "/shunter-users"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    mine = os.lstat(folder)
    if not stat.S_ISDIR(mine.st_mode) or mine.st_uid != 0 or mine.st_mode & 0o022:
        raise OSError(f"{folder} is somebody else's")  # who could hold every block, or lead elsewhere
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


def die_with(parent: int) -> None:
    """End when `parent`, which has forked this process, does."""
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def serve(control: socket.socket, first: int, outside: Outside) -> None:
    """Fork a supervisor for each descriptor that comes, until the other side is gone.

    Requests are read in the fork: what one program was given is never in the memory that others come from.
    """
    number, me = 0, os.getpid()
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not said:
            return
        number += 1
        if os.fork() == 0:
            die_with(me)
            control.close()
            supervise(socket.socket(fileno=descriptors[0]), number, first + number % USERS, outside)
        os.close(descriptors[0])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def supervise(asker: socket.socket, number: int, user: int, outside: Outside) -> NoReturn:
    """Do one request and end."""
    said = []
    while part := asker.recv(1 << 16):
        said.append(part)
    asked = json.loads(b"".join(said))
    folder = f"/box/{number}"
    try:
        found = attempt(asked, folder, user, outside)
    except Lost:
        os._exit(1)  # no reply: it is tried again, as when this process is killed
    except Exception as error:  # whatever a request holds, it is answered
        found = [{"status": "error", "code": -1, "output": "", "errors": str(error)}]
    with suppress(OSError):
        libc.umount2(folder.encode(), DETACH)
        os.rmdir(folder)
    asker.sendall(json.dumps(found).encode())
    os._exit(0)


def attempt(asked: dict[str, Any], folder: str, user: int, outside: Outside) -> list[dict[str, Any]]:
    """Write the program, compile it, run each case; nothing runs after one that did not end well."""
    os.mkdir(folder, 0o711)
    # A file system of its own: what one program writes takes no space from another.
    mount(
        "tmpfs",
        folder,
        MS_NOSUID | MS_NODEV,
        "tmpfs",
        f"size=32m,nr_inodes=2k,mode=700,uid={user},gid={user}",
    )
    with open(f"{folder}/{asked['filename']}", "w", encoding="utf-8", errors="replace") as file:
        file.write(asked["code"])
    os.chown(f"{folder}/{asked['filename']}", user, user)
    if asked["compile"]:
        limits = {**asked["limits"], **asked["compiling"]}
        made = case(asked["compile"], "", folder, user, limits, outside)
        if made["status"] != "ok":
            return [{**made, "status": f"compile-{made['status']}"}]
    found = []
    for text in asked["inputs"]:
        found.append(case(asked["execute"], text, folder, user, asked["limits"], outside))
        if found[-1]["status"] != "ok":
            break
    return found


def case(
    command: list[str], text: str, folder: str, user: int, limits: dict[str, Any], outside: Outside
) -> dict[str, Any]:
    """Run a command once; what it wrote, how it ended. `warm` as its first word is this very interpreter."""
    read, write = os.pipe()
    me = os.getpid()
    runner = os.fork()
    if runner == 0:
        die_with(me)
        os.close(read)
        try:
            status = run(command, text, folder, user, limits, outside)
        except Exception as error:  # the reply is the supervisor's to give, never a fork's of it
            status = {"status": "error", "code": -1, "output": "", "errors": str(error)}
        line = json.dumps(status).encode()
        while line:
            line = line[os.write(write, line) :]
        os._exit(0)
    os.close(write)
    said = []
    while part := os.read(read, 1 << 16):
        said.append(part)
    os.close(read)
    os.waitpid(runner, 0)
    try:
        found: dict[str, Any] = json.loads(b"".join(said))
    except ValueError:
        raise Lost from None
    return found


def run(
    command: list[str], text: str, folder: str, user: int, limits: dict[str, Any], outside: Outside
) -> dict[str, Any]:
    """In the runner: a new pid namespace with the program as its first process."""
    me = os.getpid()
    check(libc.unshare(NEWPID | NEWIPC | NEWNS), "unshare")
    mount(folder, "/tmp", MS_BIND)
    mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "tmpfs", "size=8m,mode=1777")
    given = os.memfd_create("input", 0)
    os.write(given, text.encode("utf-8", "replace"))
    os.lseek(given, 0, os.SEEK_SET)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    group = f"program-{me}"
    if outside.groups >= 0:
        grouped.make(outside.groups, group, limits["memory"], limits["processes"])
    program = os.fork()
    if program == 0:
        try:
            goes_first(outside.proc, PROGRAM_GOES)
            if outside.groups >= 0:
                grouped.put(outside.groups, f"{group}/cgroup.procs", "0")
            become(command, folder, user, limits, (given, out_end, err_end))
        finally:
            os._exit(127)
    for fd in (given, out_end, err_end):
        os.close(fd)
    said: dict[int, bytes] = {out: b"", err: b""}
    status = None
    deadline = time.monotonic() + limits["wall"]
    chosen = selectors.DefaultSelector()
    for fd in said:
        chosen.register(fd, selectors.EVENT_READ)
    while chosen.get_map() and status is None:
        ready = chosen.select(timeout=max(0.0, deadline - time.monotonic()))
        if time.monotonic() > deadline:
            status = "timeout"
        for key, _ in ready:
            part = os.read(key.fd, 1 << 16)
            said[key.fd] += part
            if not part:
                chosen.unregister(key.fd)
            if len(said[out]) + len(said[err]) > limits["output"]:
                status = "output"
    while status is None:  # it has closed its outputs and may still be there
        gone, ended, used = os.wait4(program, os.WNOHANG)
        if gone:
            late = used.ru_utime + used.ru_stime > limits["seconds"]
            full = outside.groups >= 0 and grouped.end(outside.groups, group)
            return result(ended, said[out], said[err], late, full)
        if time.monotonic() > deadline:
            status = "timeout"
        time.sleep(0.002)
    os.kill(program, signal.SIGKILL)
    os.waitpid(program, 0)  # returns when all of the namespace are gone
    if outside.groups >= 0:
        grouped.end(outside.groups, group)
    return {"status": status, "code": -9, "output": "", "errors": tail(said[err])}


def result(ended: int, out: bytes, err: bytes, late: bool, full: bool) -> dict[str, Any]:
    """How a program ended that was not killed by us. late: with its children it took too long. full: it was
    killed for its memory."""
    code = os.waitstatus_to_exitcode(ended)
    status = "ok" if code == 0 else "error"
    if full:
        err += b"\nit was killed for the memory that it took with its processes"
    elif late or code in (-signal.SIGXCPU, -signal.SIGKILL):
        status = "timeout"
    return {"status": status, "code": code, "output": out.decode("utf-8", "replace"), "errors": tail(err)}


def tail(text: bytes) -> str:
    """The end of what was said on standard error."""
    return text[-2000:].decode("utf-8", "replace")


def become(
    command: list[str], folder: str, user: int, limits: dict[str, Any], streams: tuple[int, int, int]
) -> None:
    """In the program's process: give up everything, then run."""
    os.setsid()
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
    os.closerange(3, 4096)
    os.chdir(folder)
    seconds = max(1, round(limits["seconds"] + 0.499))
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, limits["memory"], limits["memory"]),
        (resource.RLIMIT_FSIZE, 1 << 24, 1 << 24),
        (resource.RLIMIT_NOFILE, FILES, FILES),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))
    check(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    # Capabilities go with the user id; the process cannot become anybody else from here on.
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # a change of user id takes it away
    check(refusals.install(libc, os.uname().machine), "seccomp")
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", HOME=folder, LANG="C.UTF-8", TMPDIR="/tmp")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if command[0] != "warm":
        os.execvpe(command[0], command, os.environ)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    builtins.exit, builtins.quit = (_sitebuiltins.Quitter(name, "Ctrl-D") for name in ("exit", "quit"))
    sys.argv = command[1:]
    sys.executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    tempfile.tempdir = None  # where ours are is not there
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
    code = 0
    try:
        # What it runs stands in data. That is what all of this is for.
        runpy.run_path(command[1], run_name="__main__")
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else 0 if asked.code is None else 1
    except BaseException as error:
        code = 1
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    # What an interpreter does when it ends: wait for threads, then what was registered.
    shutdown = threading._shutdown  # type: ignore[attr-defined]
    for last in (shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        with suppress(BaseException):
            last()
    os._exit(code & 255)


def goes_first(proc: int, value: int) -> None:
    """How soon this process is killed where memory ends, to 1000."""
    fd = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
    os.write(fd, str(value).encode())
    os.close(fd)


def main() -> None:
    """Build the jail, say so, serve. argv: descriptor of the control socket, folder of the toys, folder of a
    control group, or nothing."""
    control = socket.socket(fileno=int(sys.argv[1]))

    def tell(**facts: str) -> None:
        control.sendall(json.dumps(facts).encode() + b"\n")

    if os.getuid() != 0:
        tell(refused="only the superuser can give programs a user id of their own")
        return
    for name in PRELOADED.split():
        importlib.import_module(name)
    alone(tell)
    try:
        if os.uname().machine not in refusals.MACHINES:
            raise OSError(f"the system calls of {os.uname().machine} are not known")
        first = block()
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        goes_first(proc, ZYGOTE_GOES)
        group = os.open(sys.argv[3], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if sys.argv[3:] else -1
        outside = Outside(proc, group)
        build_jail(sys.argv[2])
        trial(first, outside)
    except OSError as error:
        tell(refused=f"the system does not allow it ({error})")
        return
    tell(ready=sys.version.split()[0])
    serve(control, first, outside)


def alone(tell: Callable[..., None]) -> None:
    """Go on as the first process of a pid namespace: when it ends, the kernel ends all that it has forked, at
    any depth, whatever they have done about signals. The process before it only waits."""
    try:
        check(libc.unshare(NEWPID), "unshare")
    except OSError as error:
        tell(refused=f"the system does not allow it ({error})")
        os._exit(0)
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os._exit(0)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def trial(user: int, outside: Outside) -> None:
    """Raise OSError unless a program runs in a namespace of its own, as nobody, and sees no network."""
    os.mkdir("/box/trial", 0o700)
    with open("/box/trial/main.py", "w", encoding="utf-8") as file:
        file.write("import os\nprint(os.getpid(), os.getuid(), os.path.exists('/proc/self'))\n")
    os.chown("/box/trial", user, user)
    os.chown("/box/trial/main.py", user, user)
    limits = {"seconds": 5, "wall": 60, "memory": 1 << 30, "output": 1 << 16, "processes": 8}
    found = case(["warm", "main.py"], "", "/box/trial", user, limits, outside)
    shutil.rmtree("/box/trial")
    if found["output"].split() != ["1", str(user), "False"]:
        raise OSError(f"a trial gave {found}")


if __name__ == "__main__":
    main()
