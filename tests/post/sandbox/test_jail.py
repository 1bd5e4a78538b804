"""Who programs are: ids of a block, or of a user namespace where there is no superuser."""

from __future__ import annotations

import functools
import os
import select
import subprocess
from pathlib import Path

import pytest

from shunter.post.sandbox import box as boxes
from shunter.post.sandbox import jail
from shunter.post.sandbox.box import Case, Program, Sandbox
from tests.post.sandbox.running import COUNT, PYTHON, or_skip

SYSTEM = "/usr/bin/python3"
NOBODY = 65534


def as_nobody(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A sandbox that a user without any rights has started, with the system's Python. Where such a user may
    make namespaces, a refusal is a failure."""
    plain = subprocess.Popen
    if os.getuid() == 0:
        plain = functools.partial(subprocess.Popen, user=NOBODY, group=NOBODY, extra_groups=[])  # type: ignore[assignment]
        monkeypatch.setattr(boxes.subprocess, "Popen", plain)
        monkeypatch.setattr(boxes.sys, "executable", SYSTEM)
    able = (
        f"import ctypes, sys; open({str(boxes.ENTRY)!r})\n"
        "sys.exit(sys.version_info < (3, 11) or ctypes.CDLL(None).unshare(0x10000000 | 0x20000) != 0)"
    )
    try:
        fits = plain([boxes.sys.executable, "-c", able], stderr=subprocess.DEVNULL).wait() == 0
    except OSError:
        fits = False
    if not fits:
        pytest.skip("a user without rights can read no Python or no shunter here, or make no namespace")
    return Sandbox(slots=2)


def test_without_a_superuser_programs_run_in_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    rights = (
        "import ctypes, os\nc = ctypes.CDLL(None)\n"
        "print(os.getpid(), os.getuid(), os.getgroups(), c.chroot(b'/box'), c.sethostname(b'x', 1),"
        " os.path.exists('/root'), os.listdir('/proc'))\n"
        "try: os.setuid(0)\nexcept OSError: print('no')\n"
        "try: open('/usr/x', 'w')\nexcept OSError: print('no')"
    )
    with as_nobody(monkeypatch) as made:
        programs = [
            Program(PYTHON, code, [""], 0.3 if code is bomb else 10) for code in (bomb, COUNT, rights)
        ]
        found = [each[0] for each in made.run(programs)]
        assert found[0].status == "timeout"
        assert found[1].output == "31\n", "what one program has is not another's, though they are one user"
        assert found[2].output == "1 1000 [] -1 -1 False []\nno\nno\n"
        assert made.starts == 1


def test_who_runs_beside_a_program_is_never_the_same_user() -> None:
    """However many requests come while it runs: processes are counted by user, and it may have all it may."""
    holds = "import os, time\nfor _ in range(31):\n  if os.fork() == 0: time.sleep(60)\ntime.sleep(60)"
    forks = "import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint(1)"
    with or_skip():
        made = Sandbox(slots=2)

    def answered(code: str, *inputs: str) -> list[Case] | None:
        with made._send(made._request(Program(PYTHON, code, inputs)), slot=0) as ours:
            said = b""
            while part := ours.recv(1 << 16):
                said += part
        return boxes.reply(said)

    with made:
        beside = made._send(made._request(Program(PYTHON, holds, [""], 60.0)), slot=1)
        for _ in range(jail.USERS - 1):
            assert answered("") == []
        assert [[case.output for case in answered(forks, "") or []] for _ in range(3)] == [["1\n"]] * 3
        assert select.select([beside], [], [], 0)[0] == [], "it has run all the time"
        beside.close()


@pytest.mark.parametrize("slots", [1, 2, 3, 100, 256])
def test_each_slot_has_users_of_its_own(slots: int) -> None:
    users = [{boxes.user(slot, slots, n) for n in range(600)} for slot in range(slots)]
    assert sum(map(len, users)) == len(set().union(*users)), "no two slots share one"
    assert all(0 <= number < jail.USERS for each in users for number in each)
    assert boxes.user(0, slots, 0) != boxes.user(0, slots, 1) or slots > jail.USERS // 2


def test_a_folder_that_somebody_else_could_have_made_holds_no_locks(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    jail.own_folder(str(mine))
    jail.own_folder(str(mine))
    mine.chmod(0o777)
    with pytest.raises(OSError, match="not a folder that only this user"):
        jail.own_folder(str(mine))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="not a folder that only this user"):
        jail.own_folder(str(tmp_path / "link"))
    if os.getuid() == 0:
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o700)
        os.chown(theirs, NOBODY, NOBODY)
        with pytest.raises(OSError, match="not a folder that only this user"):
            jail.own_folder(str(theirs))
