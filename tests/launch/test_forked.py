"""Ranks that are forks of one process: what they are told, who is named when one dies, who ends with whom.

Not shown: ranks on GPUs, and systems other than Linux, where each rank is a process of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from tests import warm


def launch(folder: Path, count: int, **request: Any) -> dict[str, Any]:
    return elastic.launch(
        "tests.launch.small_rank", request, count, folder / "ranks", threads=1, poll=lambda: None
    )


def test_ranks_are_told_their_places_and_share_a_parent(tmp_path: Path) -> None:
    found = launch(tmp_path, 3)
    assert found["size"] == 3
    assert found["seen"]["RANK"] == found["seen"]["LOCAL_RANK"] == "0"
    assert found["seen"]["GLOO_SOCKET_IFNAME"] == "lo"
    assert not (tmp_path / "ranks" / "failed-0.json").exists()


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        ({"1": "kill", "0": "hang"}, ShunterError, "rank 1 was ended by SIGKILL"),
        ({"1": "mistake"}, ShunterError, r"rows: no such row\. Make it\."),
        ({"1": "bug"}, RuntimeError, r"rank 1 failed:\n(.|\n)*ValueError: a bug"),
    ],
    ids=["kill", "mistake", "bug"],
)
def test_one_that_ends_badly_is_named_and_all_end(
    act: dict[str, str], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        launch(tmp_path, 2, act=act)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_process_that_they_are_forked_from(number: int, tmp_path: Path) -> None:
    """Told to, or killed."""
    request = {"act": {"0": "pid", "1": "hang"}, "pid": str(tmp_path / "pid"), "folder": str(tmp_path)}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-u", "-m", "shunter.launch.forked", "tests.launch.small_rank"]
    parent = warm.popen(
        [*command, str(tmp_path / "request.json"), "2"], cwd=warm.ROOT, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not (text := _text(tmp_path / "pid")) and time.monotonic() < until:
        time.sleep(0.02)
    rank = int(text)
    parent.send_signal(number)
    assert parent.wait(20) == (1 if number == signal.SIGTERM else -signal.SIGKILL)
    while warm.lives(rank) and time.monotonic() < until:
        time.sleep(0.02)
    assert not warm.lives(rank)


def test_on_a_full_disk_all_end(tmp_path: Path) -> None:
    """What the launcher says cannot be written, nor who ended badly; the rank that hangs is ended all the
    same."""
    request = {"act": {"0": "kill", "1": "hang"}, "folder": "/proc/nowhere"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-u", "-m", "shunter.launch.forked", "tests.launch.small_rank"]
    with Path("/dev/full").open("wb") as full:
        parent = warm.popen([*command, str(tmp_path / "request.json"), "2"], cwd=warm.ROOT, stdout=full)
        assert parent.wait(60) == 1


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_nothing_has_touched_a_device_before_the_forks(tmp_path: Path, cold: None) -> None:
    """In fresh interpreters, with all that ranks of any kind load: CUDA does not live on in a fork."""
    found = elastic.launch("tests.launch.devices", {}, 2, tmp_path / "ranks", threads=1, poll=lambda: None)
    assert found == {"touched": [], "size": 2}
