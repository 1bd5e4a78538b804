"""Processes that begin warm: forks of one in which torch and the package are loaded.

Tests start hundreds of processes, and each would spend seconds of a core on imports first. `popen` takes what
`subprocess.Popen` takes, and starts `python -m MODULE ...` as a fork that has the arguments, folder,
environment and descriptors asked for, runs the module as `__main__`, can be killed, and sees its parent
(which here is a process of its own) gone when the caller is. What that does not show is that the module
starts in a fresh interpreter: tests with the fixture `cold` do, and the documents' commands on several ranks.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "recipe", "data", "models", "parallel", "plan", "launch", "train", "generate", "surgery", "evaluate",
    "post", "report", "jobs", "cli",
)  # fmt: skip
# An extra, and what runs without the package or as a program of its own.
OTHERS = ("lm_eval", "ray_cluster", "ray_hands", "zygote", "entry", "ray", "toys")
MORE = ("typer.main", "pyarrow.compute", "numpy.ctypeslib", "tokenizers", "hypothesis", "tests.parallel.pool")


# The folder of the server that workers of one test run share.
SHARED = "SHUNTER_TESTS_WARM"


class Server:
    """folder: has `warm.sock`, to ask, and a `shunter` for PATH, which asks with its command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "warm.sock"

    def wait(self) -> None:
        """Until it can be asked."""
        until = time.monotonic() + 300
        while True:
            with socket.socket(socket.AF_UNIX) as link:
                if link.connect_ex(str(self.place)) == 0:
                    return
            assert self.folder.exists(), "the warm server is gone"
            assert time.monotonic() < until, "the warm server does not begin"
            time.sleep(0.05)


class Own(Server):
    """One that this process has started."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="warm-")))
        shim = self.folder / "shunter"
        shim.write_text(SHIM.format(python=sys.executable, place=str(self.place)))
        shim.chmod(0o755)
        # It ends with its standard input, which is held here.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(self.place)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            stdin=subprocess.PIPE,
        )

    def close(self) -> None:
        """End it; what it has started ends when its own callers do."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def server() -> Server:
    """That of the test run, else this process's own, started when it is first needed."""
    if place := os.environ.get(SHARED):
        found = Server(Path(place))
    else:
        found = Own()
        atexit.register(found.close)
    found.wait()
    return found


def share() -> None:
    """One for all workers of a test run, which it outlives not; it loads while they collect."""
    made = Own()
    atexit.register(made.close)
    os.environ[SHARED] = str(made.folder)


# For callers elsewhere: nothing but the standard library, so that it starts in a hundredth of a second.
SHIM = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({place!r})
asked = json.dumps({{"module": "shunter.cli.main", "args": sys.argv[1:], "cwd": os.getcwd(),
                     "environment": dict(os.environ), "targets": [0, 1, 2]}}).encode()
socket.send_fds(link, [asked[:1]], [0, 1, 2])
link.sendall(asked[1:])
link.shutdown(socket.SHUT_WR)
told = b""
while part := link.recv(64):
    told += part
sys.exit(int(told.split()[1]) if len(told.split()) > 1 else 1)
"""


class Forked:
    """As a `subprocess.Popen`, as far as the package and tests use it."""

    def __init__(
        self, module: str, args: Sequence[str], streams: Sequence[int], pass_fds: Sequence[int], **asked: Any
    ) -> None:
        self.args, self.returncode = [module, *args], None
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(str(server().place))
        told = json.dumps(
            {"module": module, "args": list(args), "targets": [0, 1, 2, *pass_fds], **asked}
        ).encode()
        socket.send_fds(self._link, [told[:1]], [*streams, *pass_fds])
        self._link.sendall(told[1:])
        self._link.shutdown(socket.SHUT_WR)
        self._lock = threading.Lock()
        self._heard = b""
        while b"\n" not in self._heard:
            part = self._link.recv(64)
            assert part, "the warm server could not start a process"
            self._heard += part
        self.pid = int(self._heard.split()[0])

    returncode: int | None
    stdout: IO[bytes] | None = None

    def poll(self) -> int | None:
        """Its exit code, or minus the signal; None while it lives."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while self.returncode is None:
                left = None if end is None else max(0.0, end - time.monotonic())
                if not select.select([self._link], [], [], left)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                if part := self._link.recv(64):
                    self._heard += part
                elif len(self._heard.split()) > 1:
                    self.returncode = int(self._heard.split()[1])
                    self._link.close()
                else:
                    raise AssertionError("the warm server lost a process")
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def popen(command: Sequence[Any], **more: Any) -> Any:
    """subprocess.Popen; warm for `python -m MODULE ...` where nothing but what is known here is asked for."""
    words = [str(word) for word in command]
    unbuffered = words[1:2] == ["-u"]
    at = 1 + unbuffered
    known = {"cwd", "env", "stdin", "stdout", "stderr", "start_new_session", "preexec_fn", "pass_fds"}
    piped = subprocess.PIPE in (more.get("stdin"), more.get("stderr"))
    if words[0] != sys.executable or words[at : at + 1] != ["-m"] or not more.keys() <= known or piped:
        return subprocess.Popen(command, **more)
    with ExitStack() as ours:
        nothing = os.open(os.devnull, os.O_RDWR)
        ours.callback(os.close, nothing)
        read = None
        if more.get("stdout") == subprocess.PIPE:
            read, output = os.pipe()
            ours.callback(os.close, output)
        else:
            output = _descriptor(more.get("stdout"), 1, nothing)
        errors = more.get("stderr")
        streams = [
            _descriptor(more.get("stdin"), 0, nothing),
            output,
            output if errors == subprocess.STDOUT else _descriptor(errors, 2, nothing),
        ]
        made = Forked(
            words[at + 1],
            words[at + 2 :],
            streams,
            list(more.get("pass_fds", ())),
            cwd=(cwd := str(more.get("cwd") or os.getcwd())),
            first=cwd,
            environment=dict(os.environ if more.get("env") is None else more["env"]),
            session=bool(more.get("start_new_session")),
            dies=more.get("preexec_fn") is not None,
            unbuffered=unbuffered,
        )
        if read is not None:
            made.stdout = os.fdopen(read, "rb")
    return made


def run(
    command: Sequence[Any], *, check: bool = False, timeout: float | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """subprocess.run of a command that `popen` starts warm, with its output as text."""
    if more.pop("capture_output", False):
        more["stdout"] = more["stderr"] = subprocess.PIPE
    more.pop("text", None)
    with ExitStack() as files:
        kept = {}
        for name in ("stdout", "stderr"):
            if more.get(name) == subprocess.PIPE:  # a file, which nobody needs to empty meanwhile
                kept[name] = more[name] = files.enter_context(tempfile.TemporaryFile())
        process = popen(command, **more)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        for file in kept.values():
            file.seek(0)
        said = {name: file.read().decode(errors="replace") for name, file in kept.items()}
    done = subprocess.CompletedProcess(command, code, said.get("stdout"), said.get("stderr"))
    if check:
        done.check_returncode()
    return done


def _descriptor(stream: Any, own: int, nothing: int) -> int:
    if stream is None:
        return own
    if stream == subprocess.DEVNULL:
        return nothing
    return stream if isinstance(stream, int) else int(stream.fileno())


def lives(process: int) -> bool:
    """Whether it is there, and not only waits for its parent to hear of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Subprocess:
    """Stands for the module `subprocess` where the package starts processes."""

    Popen, run = staticmethod(popen), staticmethod(run)

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


def main(place: str) -> None:
    """Load, listen, and fork for each caller. Nothing is computed here: a fork of a process in which torch
    has started threads would hang."""
    for room in ROOMS:
        for path in sorted((ROOT / "shunter" / room).rglob("[a-z]*.py")):
            if path.stem not in OTHERS and not set(OTHERS) & set(path.parts):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError as error:
                    if str(error.name).partition(".")[0] == "shunter":
                        raise
    for name in MORE:
        importlib.import_module(name)
    importlib.import_module("shunter.recipe.attempt").code_record()  # kept, and the same for every fork
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(64)
    gc.collect()
    gc.freeze()  # else the first collection of each fork would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    heard: list[socket.socket | int] = [listener, 0]
    while True:
        ready, _, _ = select.select(heard, [], [])
        if 0 in ready:
            return
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                _keep(caller)
            finally:
                os._exit(1)
        caller.close()


def _keep(caller: socket.socket) -> None:
    """In the caller's stead: the parent of what it asks for. Tells of its end, and ends with the caller."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said, descriptors, _, _ = socket.recv_fds(caller, 1, 64)
    if not said:  # who only looked whether somebody listens
        os._exit(0)
    while part := caller.recv(1 << 16):
        said += part
    asked = json.loads(said)
    child = os.fork()
    if child == 0:
        caller.close()
        os._exit(_run(asked, descriptors))
    for descriptor in [0, 1, 2, *descriptors]:  # a pipe ends when those that write into it do
        os.close(descriptor)
    caller.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    # Nobody is left to work for when the caller hangs up: its end was heard once, as it had said all.
    hung_up = select.poll()
    hung_up.register(caller, 0)
    hung_up.register(ended, select.POLLIN)
    if any(descriptor == ended for descriptor, _ in hung_up.poll()):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):
            caller.sendall(f"{code}\n".encode())
    os._exit(0)


def _run(asked: dict[str, Any], descriptors: list[int]) -> int:
    if asked.get("session"):
        os.setsid()
    if asked.get("dies"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    aside = [fcntl.fcntl(each, fcntl.F_DUPFD, 256) for each in descriptors]
    for each in descriptors:
        os.close(each)
    for source, target in zip(aside, asked["targets"], strict=True):
        os.dup2(source, target)
        os.close(source)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    places = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    places = [asked["first"], *places] if "first" in asked else places
    sys.path[:0] = [each for each in places if each not in sys.path]
    torch = sys.modules["torch"]
    threads = os.environ.get("OMP_NUM_THREADS")  # read when torch is loaded, which it is
    torch.set_num_threads(int(threads) if threads else len(os.sched_getaffinity(0)))
    if asked.get("unbuffered"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    module = asked["module"]
    sys.argv = [module, *asked["args"]]
    # Not two of it: who imports it gets a new one, by either way of asking.
    package, _, name = module.rpartition(".")
    sys.modules.pop(module, None)
    if package in sys.modules:
        vars(sys.modules[package]).pop(name, None)
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return int(code or 0) & 0xFF


if __name__ == "__main__":
    main(sys.argv[1])
