"""Ways out of the sandbox that its first tests did not try, and honest programs that they did not run.

What is not shown: that the kernel keeps its promises.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.post.rewards import Grader, Item
from shunter.post.sandbox import refusals
from shunter.post.sandbox.box import Case, Program, Sandbox
from shunter.post.sandbox.code import Passes
from shunter.post.sandbox.languages import LANGUAGES, Language, Sample

PYTHON = LANGUAGES["python"]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    try:
        made = Sandbox(slots=2)
    except ShunterError as refused:
        pytest.skip(str(refused))
    with made:
        yield made


def run(box: Sandbox, code: str, lang: Language = PYTHON, seconds: float = 2.0) -> Case:
    return box.run([Program(lang, code, [""], seconds)])[0][-1]


def told(machine: str, number: int, argument: int = 0, audit: int | None = None) -> int:
    """What the filter says of a call: an interpreter of the words that it is made of."""
    words = refusals.words(machine)
    seen = {
        refusals.NUMBER: number,
        refusals.ARCHITECTURE: refusals.MACHINES[machine][0] if audit is None else audit,
        refusals.FIRST_ARGUMENT: argument,
    }
    at = loaded = 0
    while True:
        code, yes, no, value = words[at]
        at += 1
        if code == refusals.GIVE:
            return value
        if code == refusals.LOAD:
            loaded = seen[value]
        else:
            holds = loaded == value if code == refusals.EQUAL else loaded >= value
            at += yes if holds else no


@pytest.mark.parametrize("machine", refusals.MACHINES)
def test_the_filter_word_for_word(machine: str) -> None:
    _, (prctl, sock, pair), calls = refusals.MACHINES[machine]
    for call in calls:
        assert told(machine, call) == refusals.DENY
        assert told(machine, refusals.X32 | call) == refusals.DENY, "the other table of numbers"
        assert told(machine, call, audit=1) == refusals.KILL, "another kind of machine"
    for call in range(512):
        if call not in (*calls, prctl, sock, pair):
            assert told(machine, call) == refusals.ALLOW
    for family in (socket.AF_INET, socket.AF_INET6, 16, 40):  # netlink, and the host of a virtual machine
        assert told(machine, sock, family) == told(machine, pair, family) == refusals.DENY
    assert told(machine, sock, socket.AF_UNIX) == told(machine, pair, socket.AF_UNIX) == refusals.ALLOW
    assert told(machine, prctl, refusals.SET_DEATH_SIGNAL) == refusals.DENY
    assert told(machine, prctl, 2) == refusals.ALLOW


@pytest.mark.parametrize("family", [2, 10, 16, 17, 40])
def test_no_socket_leaves_the_machine(box: Sandbox, family: int) -> None:
    found = run(box, f"import socket\nsocket.socket({family}, 1)")
    assert (found.status, "PermissionError" in found.errors) == ("error", True)


def alive(user: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid // 256 == user // 256 and path.stat().st_uid >= 61184:
                found.append(path.name)
        except OSError:
            continue
    return found


def test_no_program_outlives_its_sandbox_whatever_it_does_about_signals(box: Sandbox) -> None:
    clear = "import ctypes\nprint(ctypes.CDLL(None).prctl(1, 0, 0, 0, 0))"
    assert run(box, clear).output == "-1\n", "it may not take the signal away"
    code = (
        "import os, signal, time\n"
        "for number in range(1, 32):\n  try: signal.signal(number, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\n"
        "if os.fork() == 0:\n  os.setsid()\ntime.sleep(60)"
    )
    with Sandbox(slots=1) as other:
        user = int(run(other, "import os\nprint(os.getuid())").output)
        reply = other._send(other._request(Program(PYTHON, code, [""], 60.0)))
        end = time.monotonic() + 10
        while len(alive(user)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(alive(user)) == 2
    while alive(user) and time.monotonic() < end:
        time.sleep(0.01)
    assert alive(user) == []
    reply.close()


THREADS = "from concurrent.futures import ThreadPoolExecutor as T\nimport time\n"
HONEST = {
    "a file in a temporary place": (
        "import tempfile\nwith tempfile.NamedTemporaryFile('w') as f: f.write('x')\nprint(1)"
    ),
    "a queue": "import multiprocessing\nq = multiprocessing.Queue()\nq.put(1)\nprint(q.get())",
    "another Python": (
        "import subprocess, sys\ncommand = [sys.executable, '-c', 'print(1)']\n"
        "print(subprocess.check_output(command, text=True).strip())"
    ),
    "threads": THREADS + "with T(4) as t: print(sum(t.map(int, '1000')))",
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_is_worth_what_it_prints(box: Sandbox, name: str) -> None:
    found = run(box, HONEST[name], seconds=10.0)
    assert (found.status, found.output) == ("ok", "1\n"), found.errors


def test_nothing_is_left_in_the_temporary_place(box: Sandbox) -> None:
    run(box, "open('/tmp/note', 'w').write('mine')\nopen('/dev/shm/note', 'w').write('mine')")
    found = run(box, "import os\nprint(os.listdir('/tmp'), os.listdir('/dev/shm'))")
    assert found.output == "['main.py'] []\n"


def test_a_language_says_what_it_needs(box: Sandbox) -> None:
    many = THREADS + "with T(12) as t: list(t.map(time.sleep, [.1] * 12))"
    assert run(box, many).status == "error"
    assert run(box, many, PYTHON.model_copy(update={"processes": 32})).status == "ok"
    large = "x = bytearray(600 << 20)"
    assert run(box, large).status == "error"
    assert run(box, large, PYTHON.model_copy(update={"memory": 2048})).status == "ok"


def test_a_language_whose_sample_fails_is_refused_before_anything_begins(box: Sandbox) -> None:
    """It is there and starts, but nothing that is written in it runs: each answer would be worth nothing."""
    broken: dict[str, Any] = {"name": "broken", "filename": "x.py", "execute": "python3 {file}"}
    for sample, complaint in (
        (Sample(program="import nothing", output="7"), "ended with 'error': ModuleNotFoundError"),
        (Sample(program="print(8)", output="7"), "ended with 'ok': 8"),
    ):
        with Sandbox(slots=1) as other, pytest.raises(ShunterError, match=complaint):
            Passes(other, Language(**broken, sample=sample))
    rule = Passes(box, LANGUAGES["awk"])
    item = Item("q", "```\nBEGIN { print 3 }\n```", '[{"input": "", "output": "3"}]')
    assert [one.total for one in Grader([(rule, 1.0)]).grade([item])] == [1.0]
    assert rule.told == {"pass": 1}, "the sample is not counted"
    rule.language = Language(
        **broken, sample=Sample(program="print(8)", output="7")
    )  # as if it broke meanwhile
    with pytest.raises(ShunterError, match="is known to be 1"):
        Grader([(rule, 1.0)]).grade([item])


def test_a_reply_that_breaks_off_is_asked_for_again(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    send, sent = box._send, [0]

    def half(request: Any) -> socket.socket:
        sent[0] += 1
        if sent[0] > 1:
            return send(request)
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(b'[{"status": "ok", "outp')
        return ours

    monkeypatch.setattr(box, "_send", half)
    assert run(box, "print(1)").output == "1\n"
    assert sent[0] == 2


def test_a_program_whose_runner_is_killed_is_run_again(box: Sandbox, tmp_path: Path) -> None:
    """What watches over it goes for want of memory, say: that is not the program's fault."""
    code = "import time\ntime.sleep(0.7)\nprint(1)"
    reply: list[Case] = []

    import threading

    thread = threading.Thread(target=lambda: reply.append(run(box, code)))
    thread.start()
    users, end = range(61184, 456000), time.monotonic() + 5
    struck = False
    while not struck and time.monotonic() < end:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                if path.stat().st_uid in users:
                    os.kill(int(stat[1]), 9)  # its parent
                    struck = True
            except OSError:
                continue
        time.sleep(0.01)
    thread.join()
    assert struck
    assert (reply[0].status, reply[0].output) == ("ok", "1\n")
