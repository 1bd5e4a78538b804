"""The batch script: bash reads it, words arrive, and it goes back into the queue when and only when its time
is over. Not shown: SLURM itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.launch import slurm
from shunter.launch.slurm import Batch
from tests.launch import stand_ins

ODD = "jobs.base.x=it's $(touch no) `touch no` \"\\ ; & {0} %s"


def batch(place: Path, program: str, **more: object) -> Batch:
    fields = {"time": "1-02:00:00", "partition": "long,short", "gpus": 4, "variables": {"VALUE": ODD}, **more}
    return Batch("mine", ["run", ODD], str(place), str(place / "bin" / program), 2, 4, **fields)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder {it's}"
    folder.mkdir()
    stand_ins.install(
        folder, scontrol=stand_ins.SCONTROL, srun=stand_ins.SRUN, words=stand_ins.WORDS, run=stand_ins.RUN,
        done="#!/bin/bash\nexit 0\n", broken="#!/bin/bash\nexit 1\n",
    )  # fmt: skip
    return folder


def run(place: Path, program: str, number: int | None = None) -> tuple[int, str]:
    """The script as SLURM runs it, with a signal on the way; its exit code and what scontrol was told."""
    path = place / "job.sbatch"
    path.write_text(batch(place, program).script(), encoding="utf-8")
    slurm.check(path)
    environment = {
        **os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "STAND_IN": str(place),
        "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    output = place / "output"
    with output.open("w") as file:
        process = subprocess.Popen(["bash", str(path)], env=environment, stdout=file, stderr=file, cwd="/")
        if number is not None:
            until = time.monotonic() + 20
            while output.read_text().count("working") < 2 and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(number)
        code = process.wait(30)
    said = place / "said"
    assert not list(place.glob(".shunter-stop-*"))
    return code, said.read_text() if said.exists() else ""


def test_it_asks_slurm_for_what_was_asked_for(place: Path) -> None:
    lines = batch(place, "words").script().splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "nodes=2",
        "gpus-per-node=4",
        "time=1-02:00:00",
        "partition=long,short",
        "signal=B:USR1@120",
    ):
        assert f"#SBATCH --{line}" in lines
    assert "#SBATCH --requeue" in lines
    assert not [line for line in lines if "account" in line]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")], (
        "SLURM reads none after a command"
    )


def test_words_arrive_as_they_were(place: Path) -> None:
    assert run(place, "words") == (0, "")
    found = (place / "words").read_bytes().decode().split("\0")
    assert found[:2] == [str(place), ODD]
    assert found[-4:] == ["shunter.cli.main", "run", ODD, ""]
    assert "--rdzv-endpoint=localhost:15042" in found
    assert not list(place.rglob("no"))


def test_before_its_time_is_over_it_saves_and_goes_back_into_the_queue(place: Path) -> None:
    assert run(place, "run", signal.SIGUSR1) == (0, "requeue 42\n")
    assert (place / "output").read_text().count("saved") == 2


def test_a_job_that_is_cancelled_saves_and_stays_away(place: Path) -> None:
    assert run(place, "run", signal.SIGTERM) == (143, "")


@pytest.mark.parametrize(("program", "code"), [("done", 0), ("broken", 1)])
def test_how_it_ended_is_its_exit_code(place: Path, program: str, code: int) -> None:
    assert run(place, program) == (code, "")


@pytest.mark.parametrize(
    "more",
    [{"time": "soon"}, {"partition": "a\n#SBATCH --uid=0"}, {"account": "a b"}, {"partition": "x;y"}],
)
def test_what_slurm_cannot_take_is_refused(place: Path, more: dict[str, str]) -> None:
    with pytest.raises(ShunterError, match="SLURM cannot take"):
        batch(place, "words", **more).script()


def test_submitting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = place / "job.sbatch"
    monkeypatch.setenv("PATH", str(place / "bin"))
    with pytest.raises(ShunterError, match="sbatch is not on this machine"):
        slurm.submit(script)
    stand_ins.install(place, sbatch="#!/bin/bash\necho 'sbatch: error: no such partition' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", f"{place / 'bin'}:/usr/bin:/bin")
    with pytest.raises(ShunterError, match=r"refused .*no such partition"):
        slurm.submit(script)
    stand_ins.install(place, sbatch=stand_ins.SBATCH)
    assert slurm.submit(script) == "Submitted batch job 7"
