"""Starts a run on several machines by ssh, and stays until all have ended.

ssh joins the words that it is given and hands them to the shell of the other machine, so each word that a
person or a recipe decides is quoted here, once.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from shunter.config.errors import ShunterError
from shunter.launch import node
from shunter.launch.place import DEFAULTS, NAMED

# No questions, no endless waiting, and a connection that is dead is seen within a minute.
OPTIONS = (
    "-T",
    "-oBatchMode=yes",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
)
UNREACHABLE = 255  # ssh's own exit code
PARTING = 60.0  # seconds that the others get to end by themselves once one has ended badly
LAST = 5.0  # seconds that an ssh gets to end once it was told to, and its output to come once it has
EVERY = 0.1
ERROR = "error: "  # begins the lines that a person must see
_NAME = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9\[:][A-Za-z0-9._:%\]-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Host:
    """name: as ssh takes it, perhaps with `user@`. processes: where the file of hosts says so (`slots=`)."""

    name: str
    processes: int | None = None

    @property
    def address(self) -> str:
        """Without the user."""
        return self.name.rpartition("@")[2]


def read_hosts(text: str) -> list[Host]:
    """From a file, a host a line, `# ` begins a comment, `slots=N` its processes; or from `a,b`.

    Raises ShunterError for a name that cannot be one and for one that comes twice.
    """
    path = Path(text)
    lines, where = text.split(","), "--hosts"
    if path.is_file():
        lines, where = path.read_text(encoding="utf-8").splitlines(), text
    elif "/" in text:
        raise ShunterError("file not found", where=text, mend="Give a file of hosts, or names such as a,b.")
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place = f"{where}:{number}" if path.is_file() else where
        slots = words[1].removeprefix("slots=") if len(words) == 2 else None
        wrong = len(words) > 2 or (
            slots is not None and not (slots.isascii() and slots.isdigit() and int(slots))
        )
        if wrong or not _NAME.fullmatch(words[0]):
            raise ShunterError(
                f"{line.strip()!r} is no host",
                where=place,
                mend="Write a name that ssh knows, such as user@machine, and perhaps slots=4 behind it.",
            )
        if any(words[0] == host.name for host in hosts):
            raise ShunterError(f"{words[0]} comes twice", where=place, mend="Name each machine once.")
        hosts.append(Host(words[0], int(slots) if slots else None))
    if not hosts:
        raise ShunterError("no host is named", where=where, mend="Name at least one, such as a,b.")
    return hosts


@dataclass(frozen=True)
class Launch:
    """What runs where. words: after `-m shunter.cli.main`. folder: in which each machine starts."""

    hosts: Sequence[Host]
    words: Sequence[str]
    folder: str
    python: str
    per_node: int
    address: str
    port: int
    variables: Mapping[str, str] = field(default_factory=dict)

    def commands(self) -> list[list[str]]:
        """ssh's argument list for each host."""
        return [
            ["ssh", *OPTIONS, "--", host.name, self.remote(number)] for number, host in enumerate(self.hosts)
        ]

    def remote(self, number: int) -> str:
        """What the shell of this host gets to read."""
        host = self.hosts[number]
        per_node = host.processes or self.per_node
        arguments = node.torchrun(
            nodes=len(self.hosts), per_node=per_node, node=number, address=self.address, port=self.port
        )
        variables = {**DEFAULTS, **self.variables, NAMED: host.address}
        words = [
            "env", *(f"{name}={value}" for name, value in variables.items()),
            self.python, "-m", "shunter.launch.node", *arguments, "-m", "shunter.cli.main", *self.words,
        ]  # fmt: skip
        return f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"


def variables_of(given: Sequence[str]) -> dict[str, str]:
    """From `NAME=VALUE` words. Raises ShunterError for what is none."""
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise ShunterError(f"{each!r} is no variable", where="--env", mend="Write NAME=VALUE.")
        found[name] = value
    return found


@dataclass
class Ended:
    """How one host ended. code: as the run's exit codes; UNREACHABLE when ssh itself failed."""

    host: str
    code: int
    seconds: float
    log: Path
    last: str  # of what ssh said

    @property
    def told(self) -> str:
        """In words."""
        if self.code == UNREACHABLE:
            return f"not reached or lost: {self.last}" if self.last else "not reached or lost"
        stopped = {129: "stopped", 130: "stopped", 143: "stopped"}
        return "done" if self.code == 0 else stopped.get(self.code, f"failed with exit code {self.code}")


class _Remote:
    """One ssh process; its output goes to a log, with the host's name before each line."""

    def __init__(
        self, host: Host, command: Sequence[str], log: Path, tell: Callable[[str, bool], None]
    ) -> None:
        self.host, self.log, self.last = host, log, ""
        self.begin, self.seconds = time.monotonic(), 0.0
        self._file = log.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        # A session of its own: Ctrl-C is for the launcher, which asks the run to save first.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=self._forward, args=(stream, tell, errors), daemon=True)
            for stream, errors in ((self.process.stdout, False), (self.process.stderr, True))
        ]
        for thread in self._threads:
            thread.start()

    def say(self, word: str) -> None:
        """To `launch.node` there."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()

    def ended(self) -> Ended | None:
        """None while it works."""
        code = self.process.poll()
        if code is None:
            return None
        for thread in self._threads:
            thread.join(LAST)
        self.seconds = self.seconds or time.monotonic() - self.begin
        with self._lock:
            self._file.close()
        return Ended(self.host.name, 128 - code if code < 0 else code, self.seconds, self.log, self.last)

    def _forward(self, stream: IO[bytes] | None, tell: Callable[[str, bool], None], errors: bool) -> None:
        assert stream is not None
        for line in stream:
            text = line.decode(errors="replace").rstrip("\r\n")
            with self._lock, suppress(OSError, ValueError):  # a full disk under the log stops no run
                self._file.write(f"{self.host.name}: {text}\n")
                self._file.flush()
            if errors and text.strip():
                self.last = text.strip()
            tell(text, errors)


def found() -> bool:
    """Whether there is an ssh."""
    return shutil.which("ssh") is not None


def start(launch: Launch, logs: Path, tell: Callable[[str, bool], None]) -> list[Ended]:
    """Run on all hosts until all have ended; how each did.

    tell: gets each line of the first host, errors of the others, and whether it came on stderr. A signal
    asks the run to save and stop, a second one ends it now. When one host ends badly, the others get a
    minute, then are ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    remotes: list[_Remote] = []
    with _signals() as heard:
        try:
            for number, (host, command) in enumerate(zip(launch.hosts, launch.commands(), strict=True)):
                log = logs / f"{host.address.replace(':', '_')}.log"
                remotes.append(_Remote(host, command, log, tell if number == 0 else _only_errors(host, tell)))
            return _follow(remotes, heard)
        finally:
            for remote in remotes:
                if remote.process.poll() is None:
                    remote.say("kill")
                    with suppress(subprocess.TimeoutExpired):
                        remote.process.wait(LAST)
                    remote.process.kill()


def _only_errors(host: Host, tell: Callable[[str, bool], None]) -> Callable[[str, bool], None]:
    def filtered(line: str, errors: bool) -> None:
        if errors and line.startswith(ERROR):
            tell(f"{ERROR}{host.name}: {line.removeprefix(ERROR)}", True)

    return filtered


def _follow(remotes: Sequence[_Remote], heard: list[int]) -> list[Ended]:
    said, deadline = 0, float("inf")
    ended: dict[str, Ended] = {}
    while len(ended) < len(remotes):
        for remote in remotes:
            if remote.host.name not in ended and (how := remote.ended()) is not None:
                ended[remote.host.name] = how
                if how.code == UNREACHABLE:  # the others would wait for it
                    _tell_all(remotes, "stop")
                if how.code != 0:
                    deadline = min(deadline, time.monotonic() + PARTING)
        if len(heard) > said:
            said = len(heard)
            _tell_all(remotes, "stop" if said == 1 else "kill")
            if said > 1:
                deadline = min(deadline, time.monotonic() + 5)
        if time.monotonic() > deadline:
            deadline = float("inf")
            _tell_all(remotes, "kill")
            for remote in remotes:
                with suppress(subprocess.TimeoutExpired):
                    remote.process.wait(LAST)
                remote.process.kill()
        time.sleep(EVERY)
    return [ended[remote.host.name] for remote in remotes]


def _tell_all(remotes: Sequence[_Remote], word: str) -> None:
    for remote in remotes:
        if remote.process.poll() is None:
            remote.say(word)


@contextmanager
def _signals() -> Iterator[list[int]]:
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
