"""Who programs are: ids of a block, or of a user namespace where there is no superuser."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest

from shunter.post.sandbox import box as boxes
from shunter.post.sandbox import jail
from shunter.post.sandbox.box import Program, Sandbox
from tests.post.sandbox.running import COUNT, PYTHON

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
