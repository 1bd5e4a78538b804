"""Two machines that share a disk and nothing else: network namespaces with a cable between them.

Needs root and Linux's `ip netns`; skipped elsewhere. ssh is a stand-in that enters the namespace. Not shown:
a network file system's caches, NCCL.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.test_together import PIPE, ROOT, place
from tests.launch import stand_ins

__all__ = ["place"]  # a fixture

HOSTS = ("10.201.77.1", "10.201.77.2")
SPACES = ("shunter-a", "shunter-b")
# In each: its own network and its own name. A host called `apart` would see another store.
SSH = """#!/bin/bash
while [[ $1 == -* && $1 != -- ]]; do shift; done
[[ $1 == -- ]] && shift
host=$1; shift
cd /
case $host in 10.201.77.1) space=shunter-a;; *) space=shunter-b;; esac
hidden=
[[ -e $STAND_IN/apart && $space == shunter-b ]] && hidden="mount -t tmpfs none '$STAND_IN/store' &&"
exec ip netns exec $space unshare -u -m sh -c "hostname $space && $hidden $*"
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, ip and unshare")
    try:
        for space in SPACES:
            ip("netns", "add", space)
        ip(
            "link",
            "add",
            "sh-a",
            "netns",
            SPACES[0],
            "type",
            "veth",
            "peer",
            "name",
            "sh-b",
            "netns",
            SPACES[1],
        )
        for space, name, host in zip(SPACES, ("sh-a", "sh-b"), HOSTS, strict=True):
            ip("-n", space, "addr", "add", f"{host}/24", "dev", name)
            ip("-n", space, "link", "set", name, "up")
            ip("-n", space, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for space in SPACES:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        pytest.skip(f"network namespaces do not work here: {error.stderr.decode().strip()}")
    yield
    for space in SPACES:
        ip("netns", "del", space)


def command(*words: str) -> list[str]:
    return [
        sys.executable, "-m", "shunter.cli.main", "launch", "recipe.yaml", PIPE, "--store", "store",
        "--hosts", ",".join(HOSTS), *words,
    ]  # fmt: skip


def environment(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "STAND_IN": str(place), "PATH": path}


def launch(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=place, env=environment(place), capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


@pytest.mark.long
def test_two_machines_train_one_model(place: Path, cable: None) -> None:
    stand_ins.install(place, ssh=SSH)
    done = launch(place, "--check", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [node["name"] for node in found["nodes"]] == list(SPACES)
    assert [(node["address"], node["interface"]) for node in found["nodes"]] == [
        (HOSTS[0], "sh-a"), (HOSTS[1], "sh-b"),
    ]  # fmt: skip
    assert all(link["bandwidth"] > 1e6 for link in found["links"])
    done = launch(place)
    assert done.returncode == 0, done.stderr
    assert "[4/4] base       done" in done.stdout
    assert done.stdout.count("round trip") == 1


@pytest.mark.long
def test_a_machine_that_does_not_see_the_store_is_named(place: Path, cable: None) -> None:
    stand_ins.install(place, ssh=SSH)
    (place / "store").mkdir()
    (place / "apart").touch()
    done = launch(place)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{HOSTS[1]} does not see the store of {HOSTS[0]}: a file just written is not there" in line


@pytest.mark.long
def test_a_cable_that_is_pulled_ends_both_machines(place: Path, cable: None) -> None:
    """No connection is closed: only silence tells of it."""
    stand_ins.install(place, ssh=SSH)
    output = place / "launch.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command("jobs.base.train.steps=40000"), cwd=place, env=environment(place), stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    until = time.monotonic() + 200
    while "steps " not in output.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    ip("-n", SPACES[0], "link", "set", "sh-a", "down")
    begin = time.monotonic()
    assert process.wait(200) == 2, output.read_text()
    assert time.monotonic() - begin < 150
    assert f"rank 1 on {HOSTS[1]} is gone" in output.read_text()
    ip("-n", SPACES[0], "link", "set", "sh-a", "up")
    done = launch(place)
    assert done.returncode == 0, done.stderr
