"""The process from which every untrusted program is forked. Standard library alone; of shunter it imports
what stands beside it.

It builds a jail once (the system's programs read-only, no network, no /proc), preloads what programs usually
import, and then only forks. A program runs as the first process of a pid namespace, with memory, IPC and a
file system of its own, as a user id that nothing else has, with limits, without any descriptor of ours. All
its descendants end with it. No answer comes here: outputs are compared elsewhere.

    keeper                    lives as long as who asked for all this, and as the zygote
      zygote                  first process of a pid namespace: nothing of what follows outlives it. Clean;
                              takes descriptors and forks, reads nothing
        supervisor            one a request: a file system; writes the file, compiles, runs each case
          runner              one a case: new pid namespace; reads the output, watches, kills
            program           user id of its own, limits
"""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from shunter.post.sandbox import calls, grouped, jail, kernel
from shunter.post.sandbox.jail import Users
from shunter.post.sandbox.watch import Watch

PROGRAM_GOES, ZYGOTE_GOES = 1000, 300  # where memory ends, what we run goes first
FILES = 256
LENGTH = struct.Struct("!Q")  # before a reply: a half one is none
PRELOADED = (
    "array bisect collections copy dataclasses datetime decimal enum fractions functools heapq io itertools "
    "json math operator random re statistics string textwrap typing"
)


class Outside(NamedTuple):
    """Folders that are not in the jail, by descriptors that no program gets. groups: where each program gets
    a control group; -1: there are none."""

    proc: int
    groups: int = -1


class Lost(Exception):
    """Something ended for a cause that is not in the program: memory of the machine, an operator."""


def serve(control: socket.socket, users: Users, outside: Outside) -> None:
    """Fork a supervisor for each descriptor that comes, until the other side is gone.

    Requests are read in the fork: what one program was given is never in the memory that others come from.
    With each come two bytes: its slot, and which user of the block it is. Each slot has a network of its own,
    without a link: names of sockets are in it, and programs that run at one time must not take each other's.
    To make one a program takes longer.
    """
    networks: list[int] = []
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 2, 1)
        if not said:
            return
        slot, user = said
        while len(networks) <= slot:
            kernel.unshare(kernel.NEWNET)
            networks.append(os.open("self/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=outside.proc))
        if os.fork() == 0:
            kernel.die_with_parent()
            control.close()
            kernel.enter(networks[slot])
            supervise(socket.socket(fileno=descriptors[0]), users, users.number(user), outside)
        os.close(descriptors[0])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def supervise(asker: socket.socket, users: Users, user: int, outside: Outside) -> NoReturn:
    """Do one request and end. Without a reply, it is asked again."""
    said = []
    while part := asker.recv(1 << 16):
        said.append(part)
    asked = json.loads(b"".join(said))
    try:
        found = attempt(asked, users, user, outside)
    except Lost:
        os._exit(1)
    except Exception as error:  # whatever a request holds, it is answered
        found = [{"status": "error", "code": -1, "output": "", "errors": str(error)}]
    reply = json.dumps(found).encode()
    asker.sendall(LENGTH.pack(len(reply)) + reply)
    os._exit(0)


def attempt(asked: dict[str, Any], users: Users, user: int, outside: Outside) -> list[dict[str, Any]]:
    """Write the program, compile it, run each case; nothing runs after one that did not end well."""
    folder = jail.folders(user, asked["limits"]["files"])
    place = f"{folder}/{asked['filename']}"
    with open(place, "w", encoding="utf-8", errors="replace") as file:
        file.write(asked["code"])
    os.chown(place, user, user)
    if asked["compile"]:
        limits = {**asked["limits"], **asked["compiling"]}
        made = case(asked["compile"], "", folder, users, user, limits, outside)
        if made["status"] != "ok":
            return [{**made, "status": f"compile-{made['status']}"}]
    found = []
    end = time.monotonic() + asked["wall"]  # for all cases together
    for text in asked["inputs"]:
        limits = {**asked["limits"], "wall": min(asked["limits"]["wall"], end - time.monotonic())}
        found.append(case(asked["execute"], text, folder, users, user, limits, outside))
        if found[-1]["status"] != "ok":
            break
    return found


def case(
    command: list[str],
    text: str,
    folder: str,
    users: Users,
    user: int,
    limits: dict[str, Any],
    outside: Outside,
) -> dict[str, Any]:
    """Run a command once; what it wrote, how it ended. `warm` as its first word is this very interpreter.
    Raises Lost."""
    read, write = os.pipe()
    me = os.getpid()
    runner = os.fork()
    if runner == 0:
        kernel.die_with_parent()
        if os.getppid() != me:
            os._exit(1)
        os.close(read)
        try:
            status = run(command, text, folder, users, user, limits, outside)
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
    if os.waitpid(runner, 0)[1] != 0:
        raise Lost
    found: dict[str, Any] = json.loads(b"".join(said))
    if found["status"] == "lost":
        raise Lost
    return found


def run(
    command: list[str],
    text: str,
    folder: str,
    users: Users,
    user: int,
    limits: dict[str, Any],
    outside: Outside,
) -> dict[str, Any]:
    """In the runner: a new pid namespace with the program as its first process."""
    kernel.unshare(kernel.NEWPID | kernel.NEWIPC)
    given = os.memfd_create("input", 0)
    os.write(given, text.encode("utf-8", "replace"))
    os.lseek(given, 0, os.SEEK_SET)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    group = f"program-{os.getpid()}"
    if outside.groups >= 0:
        grouped.make(outside.groups, group, limits["memory"], limits["processes"])
    watch = Watch(outside.proc, limits["seconds"], limits["memory"])
    program = os.fork()
    if program == 0:
        try:
            goes_first(outside.proc, PROGRAM_GOES)
            if outside.groups >= 0:
                grouped.put(outside.groups, f"{group}/cgroup.procs", "0")
            become(command, folder, users, user, limits, (given, out_end, err_end), outside)
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
        ready = chosen.select(timeout=max(0.0, min(deadline, watch.due) - time.monotonic()))
        if time.monotonic() > deadline:
            status = "timeout"
        for key, _ in ready:
            part = os.read(key.fd, 1 << 16)
            said[key.fd] += part
            if not part:
                chosen.unregister(key.fd)
            if len(said[out]) + len(said[err]) > limits["output"]:
                status = "output"
        status = status or watch.look()
    while status is None:  # it has closed its outputs and may still be there
        gone, ended, used = os.wait4(program, os.WNOHANG)
        if gone:
            full, counted = (False, 0.0) if outside.groups < 0 else grouped.end(outside.groups, group)
            late = max(used.ru_utime + used.ru_stime, counted) > limits["seconds"] or watch.late()
            return result(ended, said[out], said[err], late=late, full=full)
        status = watch.look()
        if time.monotonic() > deadline:
            status = "timeout"
        time.sleep(0.002)
    os.kill(program, signal.SIGKILL)
    os.waitpid(program, 0)  # returns when all of the namespace are gone
    if outside.groups >= 0:
        grouped.end(outside.groups, group)
    begun = said[out][: limits["output"]].decode("utf-8", "replace") if status == "output" else ""
    return {"status": status, "code": -9, "output": begun, "errors": tail(said[err])}


def result(ended: int, out: bytes, err: bytes, *, late: bool, full: bool) -> dict[str, Any]:
    """How a program ended that was not killed by us. late, full: it took too much time or memory."""
    code = os.waitstatus_to_exitcode(ended)
    status = "ok" if code == 0 else "error"
    if full:
        status = "memory"
    elif late or code == -signal.SIGXCPU:
        status = "timeout"
    elif code == -signal.SIGKILL:
        # It cannot do that to itself, being the first of its namespace, and its time was not up.
        status = "lost"
    return {"status": status, "code": code, "output": out.decode("utf-8", "replace"), "errors": tail(err)}


def tail(text: bytes) -> str:
    """The end of what was said on standard error."""
    return text[-2000:].decode("utf-8", "replace")


def become(
    command: list[str],
    folder: str,
    users: Users,
    user: int,
    limits: dict[str, Any],
    streams: tuple[int, int, int],
    outside: Outside,
) -> None:
    """In the program's process: give up everything, then run."""
    os.setsid()
    if limits["proc"]:
        jail.show_processes()
    kernel.check(kernel.libc.prctl(kernel.SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    users.become(user, outside.proc)
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
    os.closerange(3, 4096)
    os.chdir(folder)
    seconds = max(1, round(limits["seconds"] + 0.499))
    space = limits["address_space"]
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, space, space),
        (resource.RLIMIT_FSIZE, limits["files"], limits["files"]),
        (resource.RLIMIT_NOFILE, FILES, FILES),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))
    kernel.die_with_parent()  # a change of user id has taken it away; the filter keeps it
    calls.install()
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", HOME=folder, LANG="C.UTF-8")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if command[0] != "warm":
        os.execvpe(command[0], command, os.environ)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    builtins.exit, builtins.quit = (_sitebuiltins.Quitter(name, "Ctrl-D") for name in ("exit", "quit"))
    sys.argv = command[1:]
    for name in [name for name in sys.modules if name.split(".")[0] == "shunter"]:
        del sys.modules[name]
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
    """Make a namespace with the zygote in it, and stay until either it or who asked for it ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    asker = watched(os.getppid())
    for name in PRELOADED.split():
        importlib.import_module(name)
    try:
        calls.words(os.uname().machine)
        users = jail.enter()
        zygote = os.fork()
    except OSError as error:
        tell(control, refused=f"the system does not allow it ({error})")
        return
    if zygote == 0:
        kernel.die_with_parent()
        try:
            begin(control, users)
        finally:
            os._exit(0)
    control.close()
    ended = watched(zygote)
    if asker is not None and ended is not None:
        chosen = selectors.DefaultSelector()
        chosen.register(asker, selectors.EVENT_READ)
        chosen.register(ended, selectors.EVENT_READ)
        if all(key.fd == asker for key, _ in chosen.select()):
            os.kill(zygote, signal.SIGKILL)
    os.waitpid(zygote, 0)  # returns when nothing of the namespace is left, which holds its user ids


def watched(pid: int) -> int | None:
    """A descriptor that can be read when the process has ended (Linux 5.3); None where there is none."""
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def tell(control: socket.socket, **facts: str) -> None:
    """One line to who asked for all this."""
    control.sendall(json.dumps(facts).encode() + b"\n")


def begin(control: socket.socket, users: Users) -> None:
    """Build the jail, try it, say so, serve."""
    # Programs start others by this name; what stands there may not be in the jail.
    sys.executable = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
    groups, folder = -1, sys.argv[5] if sys.argv[5:] else ""
    try:
        if folder:
            groups = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        outside = Outside(jail.build(sys.argv[2], json.loads(sys.argv[3])), groups)
        goes_first(outside.proc, ZYGOTE_GOES)
        trial(users, outside)
    except (OSError, Lost) as error:
        tell(control, refused=f"the system does not allow it ({error})")
        return
    tell(control, ready=sys.version.split()[0])
    serve(control, users, outside)


def trial(users: Users, outside: Outside) -> None:
    """Raise OSError unless a program runs in a namespace of its own, as nobody, sees no network and no /proc,
    and can make no more processes than it may."""
    code = (
        "import os, socket\nmade = 0\n"
        "try:\n  while made < 9:\n    if os.fork() == 0: os._exit(0)\n    made += 1\nexcept OSError: pass\n"
        "try:\n  socket.socket()\n  network = True\nexcept OSError: network = False\n"
        "print(os.getpid(), os.getuid(), os.path.exists('/proc/self'), network, made)\n"
    )
    limits = {"seconds": 5, "wall": 60, "memory": 1 << 29, "address_space": 1 << 30, "output": 1 << 16,
              "files": 1 << 20, "processes": 4, "proc": False}  # fmt: skip
    asked = {"filename": "main.py", "code": code, "compile": None, "execute": ["warm", "main.py"],
             "inputs": [""], "limits": limits, "wall": 60}  # fmt: skip
    read, write = os.pipe()
    if os.fork() == 0:  # in a fork, as each request: the folders are its own
        (found,) = attempt(asked, users, users.number(0), outside)
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 1 << 16)
    os.close(read)
    os.wait()
    found = json.loads(said) if said else {"output": "nothing"}
    expected = ["1", str(users.number(0) or jail.INSIDE), "False", "False", "3"]
    if found["output"].split() != expected:
        raise OSError(f"a trial gave {found}")
