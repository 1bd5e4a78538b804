"""Nothing that a program starts outlives it, its sandbox, or the process that asked for it.

What is not shown: that a machine which loses power at some moment is as before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from shunter.post.sandbox import jail
from shunter.post.sandbox.box import Program, Sandbox
from tests.post.sandbox.running import PYTHON, WHO, alive, run

# It clears the signal of its parent's death, leaves its session, and forks.
ESCAPES = (
    "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"
    "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n"
    "time.sleep(60)"
)


def within(seconds: float, count: int, user: int) -> bool:
    end = time.monotonic() + seconds
    while alive(user) != count and time.monotonic() < end:
        time.sleep(0.01)
    return alive(user) == count


def test_what_is_under_way_ends_with_the_sandbox_whatever_it_does(box: Sandbox) -> None:
    mine = int(run(box, WHO)[0].output)
    with Sandbox(slots=1) as other:
        user = int(run(other, WHO)[0].output)
        assert user // jail.USERS != mine // jail.USERS, "two sandboxes, two blocks of ids"
        reply = other._send(other._request(Program(PYTHON, ESCAPES, [""], 60.0)))
        assert within(10, 3, user)
    assert alive(user) == 0, "`close` returns when nothing is left"
    reply.close()


def test_what_is_under_way_ends_with_who_asked_for_it(box: Sandbox) -> None:
    """Killed, with a fork of it alive that holds every descriptor it had."""
    code = (
        "import os, time\nfrom shunter.post.sandbox.box import Program, Sandbox\n"
        "from shunter.post.sandbox.languages import LANGUAGES\n"
        f"box = Sandbox(slots=1)\nfound = box.run([Program(LANGUAGES['python'], {WHO!r}, [''])])\n"
        f"reply = box._send(box._request(Program(LANGUAGES['python'], {ESCAPES!r}, [''], 60.0)))\n"
        "child = os.fork()\nif child: print(found[0][0].output.strip(), child, flush=True)\ntime.sleep(60)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    user, child = (int(word) for word in asker.stdout.readline().split())
    try:
        assert within(10, 3, user)
        asker.kill()
        asker.wait()
        assert within(10, 0, user)
    finally:
        os.kill(child, signal.SIGKILL)
        asker.stdout.close()


def test_a_program_cannot_take_its_death_signal_away(box: Sandbox) -> None:
    code = (
        "import ctypes\nx = ctypes.c_int()\nc = ctypes.CDLL(None, use_errno=True)\n"
        "print(c.prctl(1, 0, 0, 0, 0), ctypes.get_errno(), c.prctl(2, ctypes.byref(x), 0, 0, 0), x.value)"
    )
    assert run(box, code)[0].output == "-1 1 0 9\n"
