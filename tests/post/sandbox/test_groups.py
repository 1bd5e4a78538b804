"""Control groups of untrusted programs: where one is made, and what each program gets.

On folders that stand for groups. What this cannot show: that the kernel keeps to them, for which memory and
processes must be handed on in version 2.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shunter.post.sandbox import grouped, groups, zygote
from shunter.post.sandbox.box import Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES
from tests.post.sandbox.running import or_skip

MOUNT = "31 25 0:27 {root} {mount} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"


def tree(folder: Path, mine: str, root: str = "/") -> Path:
    """/proc/self of a process in the group `mine`; `a` hands on, what is below it does not."""
    mount = folder / "cgroup"
    (mount / "a" / "b" / "c").mkdir(parents=True)
    for group, offered in (("", "cpu"), ("a", "cpu memory pids"), ("a/b", ""), ("a/b/c", "")):
        (mount / group / "cgroup.subtree_control").write_text(offered)
    proc = folder / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text(
        "24 1 8:1 / / rw - ext4 /dev/sda rw\n" + MOUNT.format(root=root, mount=mount)
    )
    (proc / "cgroup").write_text(f"4:memory:/old\n0::{mine}\n")
    return proc


@pytest.mark.parametrize("mine", ["/a/b/c", "/a/b", "/a"])
def test_a_group_is_made_where_memory_and_processes_are_handed_on(tmp_path: Path, mine: str) -> None:
    made = groups.make("ours", tree(tmp_path, mine))
    assert made == tmp_path / "cgroup" / "a" / "ours"
    assert (made / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_mount_of_a_part_is_understood(tmp_path: Path) -> None:
    made = groups.make("ours", tree(tmp_path, "/docker/x/a/b", root="/docker/x"))
    assert made == tmp_path / "cgroup" / "a" / "ours"


def test_where_there_can_be_none_there_is_none(tmp_path: Path) -> None:
    assert groups.make("ours", tree(tmp_path, "/")) is None, "the root hands on too little"
    assert groups.make("ours", tmp_path) is None, "nothing is known of groups"
    (tmp_path / "proc" / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/sda rw\n")
    assert groups.make("ours", tmp_path / "proc") is None, "version 2 is not mounted"


def test_a_group_goes_with_those_in_it(tmp_path: Path) -> None:
    (tmp_path / "ours" / "program-7").mkdir(parents=True)
    groups.remove(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    groups.remove(tmp_path / "never")


def sandbox() -> Sandbox:
    with or_skip():
        return Sandbox(slots=1)


def test_each_program_gets_a_group_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "make", lambda name: tmp_path)
    monkeypatch.setattr(groups, "remove", lambda group: None)
    small = LANGUAGES["python"].model_copy(update={"memory": 256})
    hello = Program(small, "import os\nprint(os.listdir('/'))", [""])
    with sandbox() as box:
        assert box.limits == "cgroup"
        (first,), (second,) = box.run([hello, hello])
    assert "cgroup" not in first.output + second.output
    told = [{each.name: each.read_text() for each in group.iterdir()} for group in tmp_path.iterdir()]
    assert len(told) == 3, "a trial and two programs"
    assert told.count(
        {
            "memory.max": str(1 << 28), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "32",
            "cgroup.procs": "0",
        }
    ) == 2  # fmt: skip


def test_a_group_that_does_nothing_leaves_resource_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(groups, "make", lambda name: tmp_path / "file")
    with sandbox() as box:
        assert box.limits == "resource limits"
        assert box.run([Program(LANGUAGES["python"], "print(1)", [""])])[0][0].output == "1\n"


def test_what_was_killed_for_its_memory_is_told(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        grouped.make(folder, "program-1", 1000, 8)
        grouped.put(folder, "program-1/memory.events", "low 0\nhigh 3\noom 1\noom_kill 2\n")
        grouped.put(folder, "program-1/cpu.stat", "usage_usec 1500000\nuser_usec 1\n")
        assert grouped.end(folder, "program-1") == (True, 1.5)
        grouped.make(folder, "program-2", 1000, 8)
        assert grouped.end(folder, "program-2") == (False, 0.0)
    finally:
        os.close(folder)
    killed = 9  # as waitpid tells it
    assert zygote.result(killed, b"", b"", late=False, full=True)["status"] == "memory"
    assert zygote.result(killed, b"", b"", late=False, full=False)["status"] == "lost", (
        "by whom, nobody knows"
    )
    assert zygote.result(killed, b"", b"", late=True, full=False)["status"] == "timeout"
