"""Words survive ssh's joining; hosts are read or refused; a stop, a kill, a host that cannot be reached.

Not shown: a real ssh, and shells of other machines that are not POSIX shells.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.launch import ssh
from shunter.launch.ssh import Ended, Host, Launch, read_hosts, variables_of
from tests.launch import stand_ins

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = stand_ins.install(tmp_path, ssh=stand_ins.SSH, words=stand_ins.WORDS, run=stand_ins.RUN)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    return tmp_path


def plan(place: Path, program: str, hosts: str = "a,b", words: tuple[str, ...] = ("run", "r.yaml")) -> Launch:
    return Launch(
        read_hosts(hosts), words, str(place), str(place / "bin" / program), 1, "127.0.0.1", 29500, {}
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(TEXT, max_size=4), value=TEXT, name=TEXT)
def test_what_a_person_wrote_arrives_as_it_was(words: list[str], value: str, name: str, place: Path) -> None:
    folder = place / f"-{name.replace('/', '_')} $(touch no) '"
    folder.mkdir(exist_ok=True)
    launch = Launch(
        [Host("me@a")], ["run", *words], str(folder), str(place / "bin" / "words"), 3, "10.0.0.1", 1234,
        {"VALUE": value},
    )  # fmt: skip
    (command,) = launch.commands()
    subprocess.run(command, check=True)
    found = (place / "words").read_bytes().decode().split("\0")[:-1]
    assert found[:3] == [str(folder), value, "a"]
    at = found.index("shunter.cli.main")
    assert found[at + 1 :] == ["run", *words]
    assert found[3:at] == [
        "-m", "shunter.launch.node", "--nnodes=1", "--nproc-per-node=3", "--node-rank=0",
        "--master-addr=10.0.0.1", "--master-port=1234", "--max-restarts=0", "--shutdown-timeout=600", "-m",
    ]  # fmt: skip
    assert not list(place.rglob("no"))


def test_hosts_are_read_from_names_and_from_a_file(tmp_path: Path) -> None:
    assert read_hosts("a,me@b.example , 10.0.0.3") == [Host("a"), Host("me@b.example"), Host("10.0.0.3")]
    file = tmp_path / "hosts.txt"
    file.write_text("# machines\nme@a slots=4\n\nb # the other\n[fe80::1]\n", encoding="utf-8")
    assert read_hosts(str(file)) == [Host("me@a", 4), Host("b"), Host("[fe80::1]")]
    assert read_hosts(str(file))[0].address == "a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-oProxyCommand=x", "is no host"),
        ("a;b", "is no host"),
        ("me@-x", "is no host"),
        ("a b c", "is no host"),
        ("a slots=0", "is no host"),
        ("a,b,a", "a comes twice"),
        (" , ", "no host is named"),
        ("no/such/file", "file not found"),
    ],
)
def test_what_is_no_host_is_refused(text: str, says: str) -> None:
    with pytest.raises(ShunterError, match=says):
        read_hosts(text)


def test_what_is_no_variable_is_refused() -> None:
    assert variables_of(["A=b=c", "D="]) == {"A": "b=c", "D": ""}
    for wrong in ("A", "=b", "A B=c", "A;x=1"):
        with pytest.raises(ShunterError, match="is no variable"):
            variables_of([wrong])


def started(launch: Launch, logs: Path, *signals: int, after: float = 0.5) -> tuple[list[Ended], list[str]]:
    """Run it; send this process signals meanwhile, once the first host works."""
    heard: list[str] = []

    def send() -> None:
        until = time.monotonic() + 20
        while signals and "working" not in heard and time.monotonic() < until:
            time.sleep(0.02)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(after)

    thread = threading.Thread(target=send)
    thread.start()
    ended = ssh.start(launch, logs, lambda line, errors: heard.append(f"!{line}" if errors else line))
    thread.join()
    return ended, heard


def test_a_stop_reaches_all_hosts_which_save(place: Path) -> None:
    ended, heard = started(plan(place, "run"), place / "logs", signal.SIGINT)
    assert [(each.host, each.code, each.told) for each in ended] == [
        ("a", 143, "stopped"),
        ("b", 143, "stopped"),
    ]
    assert sorted(heard) == ["!noise", "!warning: small", "saved", "working"], "of the first host only"
    text = (place / "logs" / "b.log").read_text()
    assert sorted(text.splitlines()) == ["b: noise", "b: saved", "b: warning: small", "b: working"]


def test_a_second_signal_ends_what_does_not_stop(place: Path) -> None:
    stubborn = (
        "#!/bin/bash\necho working\nread -r word\nread -r word\nsleep 0.1\n[[ $word == kill ]] && exit 9\n"
    )
    stand_ins.install(place, stubborn=stubborn)
    ended, _ = started(plan(place, "stubborn"), place / "logs", signal.SIGTERM, signal.SIGTERM)
    assert [each.code for each in ended] == [9, 9]


def test_a_host_that_is_not_reached_stops_the_others(place: Path) -> None:
    ended, _ = started(plan(place, "run", hosts="a,lost"), place / "logs")
    assert [each.code for each in ended] == [143, ssh.UNREACHABLE]
    assert ended[1].told == "not reached or lost: ssh: connect to host lost port 22: Connection refused"


def test_a_host_that_fails_ends_the_others_in_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PARTING", 0.3)
    monkeypatch.setattr(ssh, "LAST", 0.5)  # it does not hear `kill`, and what it started holds its output
    fails = '#!/bin/bash\n[[ $SHUNTER_HOST == b ]] && { echo "error: no room" >&2; exit 2; }\nsleep 60\n'
    stand_ins.install(place, fails=fails)
    begin = time.monotonic()
    ended, heard = started(plan(place, "fails"), place / "logs")
    assert time.monotonic() - begin < 20
    assert ended[1].code == 2
    assert ended[0].code != 0
    assert heard == ["!error: b: no room"]


def test_the_supervisor_tells_a_name_that_is_not_known() -> None:
    """On the machine itself; without it torchrun would try for minutes."""
    done = subprocess.run(
        [sys.executable, "-m", "shunter.launch.node", "--master-addr=no-such-machine.invalid"],
        capture_output=True, text=True, check=False, input="",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the first machine's address 'no-such-machine.invalid' is not known")
