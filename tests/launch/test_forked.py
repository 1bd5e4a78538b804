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
from typing import Any, cast

import pytest

from shunter.config.errors import ShunterError
from shunter.launch import elastic, forked
from shunter.launch.recur import CollectiveTimeout
from tests import warm
from tests.launch import deadlocked


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


def begin(folder: Path, module: str, **request: Any) -> warm.Forked:
    """The launcher of two ranks, which are told this."""
    (folder / "request.json").write_text(json.dumps({"folder": str(folder), **request}))
    command = [sys.executable, "-u", "-m", "shunter.launch.forked", module, str(folder / "request.json"), "2"]
    found: warm.Forked = warm.popen(command, cwd=warm.ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    return found


def pids(path: Path, count: int) -> list[int]:
    """What is written there, once it is."""
    until = time.monotonic() + 60
    while len(found := _text(path).split()) < count and time.monotonic() < until:
        time.sleep(0.02)
    assert len(found) == count
    return [int(each) for each in found]


def gone(processes: list[int]) -> bool:
    """Whether they all end."""
    until = time.monotonic() + 20
    while any(map(warm.lives, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(warm.lives, processes))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_and_what_they_have_started_end_with_the_process_that_they_are_forked_from(
    number: int, tmp_path: Path
) -> None:
    """Told to, or killed."""
    parent = begin(
        tmp_path, "tests.launch.small_rank", act={"0": "brood", "1": "hang"}, pid=str(tmp_path / "pid")
    )
    brood = pids(tmp_path / "pid", 2)
    parent.send_signal(number)
    assert parent.wait(20) == (1 if number == signal.SIGTERM else -signal.SIGKILL)
    assert gone(brood)


@pytest.mark.parametrize("ended", ["killed", "told"])
def test_a_rank_that_holds_the_interpreter_ends_with_its_launcher(
    ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it has started, and whether the launcher was killed or did not hear that it shall end."""
    parent = begin(
        tmp_path, "tests.launch.small_rank", act={"0": "brood", "1": "hang"}, pid=str(tmp_path / "pid"),
        deaf=True,
    )  # fmt: skip
    brood = pids(tmp_path / "pid", 2)
    if ended == "killed":
        parent.send_signal(signal.SIGKILL)
        parent.wait(20)
    else:
        parent.send_signal(signal.SIGSTOP)  # it hears nothing more
        monkeypatch.setattr(elastic, "PARTING", 0.1)
        elastic.end(cast("subprocess.Popen[bytes]", parent))
    assert gone(brood)


def test_what_a_rank_has_started_ends_with_it(tmp_path: Path) -> None:
    """Though it was killed, and could end nothing."""
    with pytest.raises(ShunterError, match="rank 1 was ended by SIGKILL"):
        launch(tmp_path, 2, act={"1": "brood", "0": "hang"}, pid=str(tmp_path / "pid"), dies=True)
    assert gone(pids(tmp_path / "pid", 2))


def test_a_rank_that_is_told_to_end_before_it_has_begun_ends(tmp_path: Path) -> None:
    """A fork has its parent's way with a signal until it has its own, which only took note of it."""
    parent = begin(tmp_path, "tests.launch.told_early", act={"0": "hang", "1": "hang"})
    assert parent.wait(forked.STAY - 5) == 1
    assert sorted(json.loads((tmp_path / elastic.ENDED).read_text())) == [[0, -15], [1, -15]]


def test_ranks_that_wait_for_each_other_are_told_as_that(tmp_path: Path) -> None:
    """Each in another collective. Who waits less long than the other may be ended before it tells."""
    with pytest.raises(CollectiveTimeout, match="no rank died") as caught:
        elastic.launch("tests.launch.deadlocked", {}, 2, tmp_path / "ranks", threads=1, poll=lambda: None)
    assert caught.value.where == str(tmp_path / "ranks" / "output.txt")
    mine, theirs = "rank 0 waited: to add up gradients", "rank 1 waited: `dist.all_reduce("
    assert mine in str(caught.value) or theirs in str(caught.value)


def test_one_that_hangs_while_another_waits_tells_where_it_was(tmp_path: Path) -> None:
    """By its main thread, of several."""
    request = {"hangs": True}
    with pytest.raises(CollectiveTimeout, match="no rank died") as caught:
        elastic.launch(
            "tests.launch.deadlocked", request, 2, tmp_path / "ranks", threads=1, poll=lambda: None
        )
    line = 1 + Path(deadlocked.__file__).read_text().splitlines().index("        time.sleep(600)")
    says = f"rank 1 told nothing until it was ended, in work (deadlocked.py, line {line})"
    assert says in str(caught.value)


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
