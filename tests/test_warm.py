"""Processes that begin warm behave as others do: what they are given, how they end, with whom they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm


def doing(*words: str) -> list[str]:
    return [sys.executable, "-m", "tests.small_process", *words]


def test_it_has_the_folder_environment_and_descriptors_asked_for(tmp_path: Path) -> None:
    read, write = os.pipe()
    with (tmp_path / "said").open("wb") as output:
        process = warm.popen(
            doing("tell", str(write)), cwd=tmp_path, env={"ONE": "1"}, stdout=output, pass_fds=[write],
            start_new_session=True,
        )  # fmt: skip
    os.close(write)
    assert process.wait(60) == process.poll() == 0
    assert (tmp_path / "said").read_text() == f"{tmp_path} ['ONE']\n"
    assert os.read(read, 9) == b"there"
    assert os.read(read, 9) == b"", "nobody else holds the other end"
    os.close(read)


def test_what_it_says_can_be_read_while_it_says_it(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = warm.popen(
        doing("tell", str(write)), cwd=tmp_path, env={"ONE": "1"}, stdout=subprocess.PIPE, pass_fds=[write]
    )
    os.close(write)
    with process.stdout as said:
        assert said.read() == f"{tmp_path} ['ONE']\n".encode(), "to its end, as nobody else can write"
    assert process.wait(60) == 0
    os.close(read)


def test_a_command_is_run_to_its_end() -> None:
    done = warm.run(doing("fail"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError: on purpose" in done.stderr
    with pytest.raises(subprocess.CalledProcessError):
        warm.run(doing("exit", "3"), check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(doing("sleep"), timeout=0.05)


@pytest.mark.parametrize(
    ("words", "code"), [(["exit", "3"], 3), (["fail"], 1), (["kill"], -signal.SIGKILL)], ids=str
)
def test_its_end_is_told_as_it_was(words: list[str], code: int, tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as output:
        process = warm.popen(doing(*words), stdout=output, stderr=subprocess.STDOUT)
    assert process.wait(60) == code
    assert ("ValueError: on purpose" in (tmp_path / "said").read_text()) == (code == 1)


def test_it_can_be_waited_for_and_ended() -> None:
    process = warm.popen(doing("sleep"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    process.kill()  # which is no error


def test_it_ends_with_its_caller() -> None:
    process = warm.popen(doing("sleep"), preexec_fn=lambda: None)  # of the package: to die with its parent
    process._link.close()  # as the caller's death would
    until = time.monotonic() + 20
    while warm.lives(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not warm.lives(process.pid)


def test_what_is_no_module_begins_as_ever() -> None:
    process = warm.popen([sys.executable, "-c", "pass"])
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0
