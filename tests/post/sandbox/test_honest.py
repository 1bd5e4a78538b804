"""What honest programs do works in the sandbox, and what they cost is counted, however they are made.

What is not shown: every library; and that the time of children which nobody waits for is counted to the
millisecond (they are looked at while they run).
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.post.rewards import Grader, Item
from shunter.post.sandbox import box as boxes
from shunter.post.sandbox import watch
from shunter.post.sandbox.box import Program, Sandbox
from shunter.post.sandbox.code import Passes
from shunter.post.sandbox.languages import LANGUAGES, Language, Sample
from shunter.post.sandbox.watch import Watch
from tests.post.sandbox.running import COUNT, PYTHON, run

IDIOMS = {
    "a file for a while": "import tempfile\nwith tempfile.NamedTemporaryFile() as f: print(f.name[:5])",
    "shared memory and queues": "import multiprocessing as m\nq = m.Queue()\nq.put('/tmp/')\nprint(q.get())",
    "sixteen threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "print(''.join(ThreadPoolExecutor(16).map(str, ['/', 't', 'm', 'p', '/'])))"
    ),
    "a pair of sockets": (
        "import socket\na, b = socket.socketpair()\na.send(b'/tmp/')\nprint(b.recv(9).decode())"
    ),
    "a listener": (
        "from multiprocessing.connection import Client, Listener\nwith Listener(family='AF_UNIX') as at:\n"
        "  one = Client(at.address)\n  other = at.accept()\none.send('/tmp/')\nprint(other.recv())"
    ),
    "a copy of a file": (
        "import shutil\nwith open('a', 'w') as f: f.write('/tmp/')\n"
        "shutil.copyfile('a', 'b')\nprint(open('b').read())"
    ),
    "an event loop": "import asyncio\nasync def f(): return '/tmp/'\nprint(asyncio.run(f()))",
    "another Python": (
        "import subprocess, sys\nasked = [sys.executable, '-SIc', 'print(\\'/tmp/\\')']\n"
        "print(subprocess.run(asked, capture_output=True, text=True).stdout)"
    ),
}


def test_honest_programs_run(box: Sandbox) -> None:
    found = box.run([Program(PYTHON, code, [""], 5.0) for code in IDIOMS.values()])
    got = {name: each[0].output.strip() or each[0].errors for name, each in zip(IDIOMS, found, strict=True)}
    assert got == dict.fromkeys(IDIOMS, "/tmp/")


def test_folders_for_a_while_are_a_programs_own(box: Sandbox) -> None:
    run(box, "open('/tmp/a', 'w')\nopen('/dev/shm/b', 'w')")
    (seen,) = run(box, "import os\nprint(os.listdir('/tmp'), os.listdir('/dev/shm'), os.listdir('/proc'))")
    assert seen.output == "[] [] []\n"


def test_names_of_sockets_are_a_programs_own(box: Sandbox) -> None:
    """Python's own listeners are named by their process, which is 1 in every program: a neighbour that takes
    the name would make an honest program fail."""
    takes = (
        "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0listener-1-0')\n"
        "print(1, flush=True)\ntime.sleep(0.3)"
    )
    found = box.run([Program(PYTHON, takes, [""], 5.0)] * 4)
    assert [each[0].output for each in found] == ["1\n"] * 4


# A child uses so much time and says so; its parent, which waits for no end, goes on when it was told.
_SPIN = (
    "import os, signal, time\na, b = os.pipe()\ndef spin(then):\n"
    "  while time.process_time() < 0.15: pass\n  os.write(b, b'x')\n  then()\n"
)
EVADE = {
    "its children's ends are ignored": _SPIN + (
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfor _ in range(6):\n"
        "  if os.fork() == 0: spin(lambda: os._exit(0))\n  os.read(a, 1)"
    ),
    "children are still there at its end": _SPIN + (
        "for _ in range(6):\n  if os.fork() == 0: spin(lambda: time.sleep(9))\n  os.read(a, 1)"
    ),
    "many short ones": (
        "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nend = time.time() + 4\n"
        "while time.time() < end:\n  if os.fork() == 0:\n    t = time.process_time()\n"
        "    while time.process_time() < t + 0.004: pass\n    os._exit(0)\n  time.sleep(0.005)"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "how", [n if n != "many short ones" else pytest.param(n, marks=pytest.mark.long) for n in EVADE]
)
def test_the_time_of_children_is_counted_that_nobody_waits_for(
    box: Sandbox, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "WALL", 100.0)  # it is not the clock that ends them
    assert run(box, EVADE[how], seconds=0.3)[0].status == "timeout"


def test_memory_is_of_all_processes_together(box: Sandbox) -> None:
    code = (
        "import os, time\nfor _ in range({}):\n"
        "  if os.fork() == 0: x = bytearray(30 << 20); time.sleep(0.3); os._exit(0)\n"
        "for _ in range({}): os.wait()"
    )
    small = PYTHON.model_copy(update={"memory": 64, "address_space": 512})
    assert run(box, code.format(1, 1), lang=small)[0].status == "ok"
    assert run(box, code.format(3, 3), lang=small)[0].status == "memory"


# Listed by the kernel are those that nobody has accepted, or that are on their way to somebody, too.
SOCKETS = {
    "of several processes": (
        "import os, socket, time\nfor _ in range(2):\n"
        "  if os.fork() == 0: kept = [socket.socketpair() for _ in range({0} // 4)]; break\n"
        "time.sleep(0.5)"
    ),
    "that nobody accepts": (
        "import socket, time\nat = socket.socket(socket.AF_UNIX)\nat.bind('\\0a')\nat.listen(4096)\n"
        "for _ in range({0}):\n  with socket.socket(socket.AF_UNIX) as one: one.connect('\\0a')\n"
        "time.sleep(0.5)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", SOCKETS)
def test_what_sockets_can_hold_is_memory(box: Sandbox, which: str) -> None:
    small = PYTHON.model_copy(update={"memory": 64, "address_space": 512})
    counts = [mib * boxes.MIB // watch.SOCKET for mib in (16, 80)]
    found = box.run([Program(small, SOCKETS[which].format(count), [""], 5.0) for count in counts])
    assert [each[0].status for each in found] == ["ok", "memory"]


def test_sockets_that_an_earlier_program_has_left_are_not_a_programs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [100]
    monkeypatch.setattr(Watch, "_sockets", lambda self: found[-1])
    monkeypatch.setattr(Watch, "_processes", lambda self: [])
    proc = os.open("/proc", os.O_RDONLY)
    watched = Watch(proc, 1.0, 10 * watch.SOCKET)
    os.close(proc)
    for count, expected in ((110, None), (111, "memory"), (90, None)):
        found.append(count)
        watched.due = 0.0
        assert watched.look() == expected
    watched.close()


def test_a_socket_holds_no_more_than_is_counted(box: Sandbox) -> None:
    """Whether its other end is there or not; one message may go beyond."""
    code = (
        "import socket\na, b = socket.socketpair()\na.setblocking(False)\nheld = 0\n"
        "try:\n  while True: held += a.send(bytes(4096))\nexcept OSError: print(held)"
    )
    assert 0 < int(run(box, code)[0].output) <= watch.SOCKET + 4096


def test_processes_and_files_are_limited_by_the_language(box: Sandbox) -> None:
    few = PYTHON.model_copy(update={"processes": 3})
    assert [run(box, COUNT, lang=lang)[0].output for lang in (few, PYTHON)] == ["2\n", "31\n"]


def test_a_language_that_ends_with_an_error_is_refused_before_anything_is_taught() -> None:
    """As a runtime that reserves more memory than it is given, or does not find its files."""
    for execute in ("sh -c 'exit 134'", "sh -c 'echo 8'", "/opt/no-such/x {file}"):
        broken = Language(
            name="broken",
            filename="x",
            execute=execute,
            install="Mend it.",
            sample=Sample(program="7", output="7"),
        )
        with (
            Sandbox(slots=1) as other,
            pytest.raises(ShunterError, match=r"cannot be run in the sandbox|which is not here"),
        ):
            Passes(other, broken)
        assert other._process is None


def test_a_language_that_fails_later_is_seen_by_its_canary(box: Sandbox) -> None:
    rule = Passes(box, LANGUAGES["stack"])
    target = json.dumps([{"input": "2 5", "output": "7"}])
    items = [Item("q", "```\nread read + print\n```", target)]
    assert [one.total for one in Grader([(rule, 1.0)]).grade(items)] == [1.0]
    rule.language = Language(
        name="stack", filename="a", execute="sh -c 'exit 3'", sample=Sample(program="7 print", output="7")
    )
    with pytest.raises(ShunterError, match="whose score is known to be 1"):
        Grader([(rule, 1.0)]).grade(items)


def test_paths_of_a_language_are_shown_read_only(tmp_path: Path) -> None:
    tool = Path("/opt") / f"shunter-{os.getpid()}"
    if not os.access("/opt", os.W_OK):
        pytest.skip("/opt cannot be written to")
    tool.mkdir()
    try:
        (tool / "say").write_text("#!/bin/sh\necho 7\n")
        (tool / "say").chmod(0o755)
        with Sandbox(slots=1) as other:
            hidden = Language(
                name="say", filename="x", execute=f"{tool}/say", sample=Sample(program="7", output="7")
            )
            with pytest.raises(ShunterError, match="cannot be run in the sandbox"):
                Passes(other, hidden)
        shown = hidden.model_copy(update={"paths": [str(tool)]})
        with Sandbox(slots=1) as other:
            Passes(other, shown)
            assert other.starts == 2, "a jail is built once"
            code = f"import os\nprint(os.statvfs('{tool}').f_flag & os.ST_RDONLY)"
            assert run(other, code)[0].output == "1\n"
    finally:
        shutil.rmtree(tool)
    with pytest.raises(ShunterError, match="which is not here"):
        shown.check()
    with pytest.raises(ValueError, match="no plain path"):
        Language(name="x", filename="x", execute="x", paths=["/a/../b"])


JAVA = "public class Main { public static void main(String[] a) { System.out.println(7); } }"
RUNTIMES = {
    "node": Language(
        name="node", filename="a.js", execute="node {file}", address_space=4096,
        sample=Sample(program="console.log(7)", output="7"),
    ),
    "java": Language(
        name="java", filename="Main.java", execute="java {file}", memory=1024, address_space=16384,
        processes=64, proc=True, paths=[path for path in ("/etc/java-17-openjdk",) if os.path.isdir(path)],
        sample=Sample(program=JAVA, output="7"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["node", pytest.param("java", marks=pytest.mark.long)])
def test_runtimes_that_reserve_much_memory_can_be_configured(box: Sandbox, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not here")
    lang = RUNTIMES[name]
    with Sandbox(slots=1) if lang.paths else nullcontext(box) as used:
        (found,) = run(used, lang.sample.program, lang=lang, seconds=20.0)
    assert found.output == "7\n", found
