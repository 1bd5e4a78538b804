"""`rl` with a writer in a process of its own: the same bits where they must be, and what ends it.

What this cannot show: another machine, a GPU, and a machine that loses power.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shunter.config.errors import ShunterError
from shunter.models.hf import load_model
from shunter.post import beside, delayed
from shunter.post.journal import Journal
from shunter.recipe.job import Stopped
from shunter.surgery import lora
from tests.jobs.conftest import Still, Work, work_in
from tests.jobs.test_delayed_rl import EXACT, rows_of, until
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks, weights
from tests.post.roles.small import talks_in

__all__ = ["model", "talks"]  # fixtures
ROOT = Path(__file__).resolve().parents[2]
STEPS, ROWS = 16, 12


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The versions of the weights that wrote each answer that was learnt from."""
    found: list[set[int]] = []
    stale = delayed.Delayed._stale

    def noted(self: delayed.Delayed, done: Any) -> float:
        found.extend(set(one.versions) for one in done)
        return stale(self, done)

    monkeypatch.setattr(delayed.Delayed, "_stale", noted)
    return found


@pytest.mark.parametrize("bound", [1, pytest.param(0, marks=pytest.mark.long)])
def test_another_process_writes_the_same_bits(
    work: Work, model: Path, talks: Path, bound: int, seen: list[set[int]], cold: None
) -> None:
    more: dict[str, Any] = {"staleness": bound, "train": {"steps": 4, "lr": 1e-3}}
    here, _ = reinforce(work, model, talks, name="here", how=EXACT, **more)
    out, metrics = reinforce(work, model, talks, name="apart", how={**EXACT, "writer": "process"}, **more)
    assert weights(out) == weights(here)
    assert [row["rl/staleness"] for row in rows_of(out)] == [min(step, bound) for step in range(4)]
    assert 0 < metrics["largest_gap"] < 1e-5
    assert {len(versions) for versions in seen} == {1}, "no weights were taken in the midst of an answer"


@pytest.mark.parametrize("handed", ["merged", "base"])
def test_another_process_writes_for_adapters(
    work: Work, model: Path, talks: Path, handed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed the whole model that they make: by the one under them the gap would end the run."""
    if handed == "base":
        monkeypatch.setattr(lora, "merged", lambda decoder: load_model(model))
    more: dict[str, Any] = {
        "staleness": 1,
        "train": {"steps": 4, "lr": 0.05},
        "adapter": {"rank": 4},
        "how": {**EXACT, "writer": "process"},
    }
    if handed == "base":
        with pytest.raises(ShunterError, match="differ"):
            reinforce(work, model, talks, **more)
        return
    out, metrics = reinforce(work, model, talks, **more)
    assert [row["rl/staleness"] for row in rows_of(out)] == [0, 1, 1, 1]
    assert 0 < metrics["largest_gap"] < 1e-4
    assert (out / "adapter").is_dir()
    assert weights(out) != weights(model)


def test_stopped_what_is_being_written_is_kept_to_its_last_token(
    work: Work, model: Path, talks: Path, seen: list[set[int]]
) -> None:
    """By a process that takes newer weights between two tokens, as `rl` does by itself; parts of answers are
    on disk, though ten seconds have not passed. Four answers at a time: it is always amid some."""
    how = {**HOW, "at_once": 4, "writer": "process"}
    more: dict[str, Any] = {"staleness": 1, "prompts_per_step": 6, "max_new_tokens": 24, "how": how}
    with pytest.raises(Stopped):
        reinforce(work, model, talks, control=Still(stop_after=2), **more)
    assert max(row["rl/max_staleness"] for row in rows_of(talks.parents[1] / "made" / "rl" / "out")) == 1
    journal = Journal(next(talks.parents[1].glob("made/rl/**/rollouts")))
    whole = [one for step in range(4) for one in journal.read(step, 9, 0).values()]
    parts = [one for step in range(4) for one in journal.begun(step, 9, 0).values()]
    assert parts
    assert all(0 < len(one.ids) < 24 for one in parts)
    written = [*seen, *(set(one.versions) for one in (*whole, *parts))]
    assert max(map(len, written)) == 2, "it took weights in the midst of answers"
    for path in journal.folder.glob("*.jsonl"):
        assert path.read_bytes().endswith(b"\n"), "no line is torn"


@pytest.mark.long
@pytest.mark.parametrize(
    ("bound", "writers", "swap"), [(1, 1, "tokens"), (2, 1, "tokens"), (1, 2, "tokens"), (1, 1, "steps")]
)
def test_meanwhile_no_token_is_too_old_and_answers_go_on_with_newer_weights(
    work: Work, model: Path, talks: Path, bound: int, writers: int, swap: str, seen: list[set[int]]
) -> None:
    """Without fixed times, in 16 steps: some answers are of two versions, and each token's is in bounds; none
    is where weights are taken between steps alone."""
    how = {**HOW, "writers": ["cpu"] * writers, "swap": swap}
    train = {"steps": STEPS, "lr": 1e-3}
    out, metrics = reinforce(
        work, model, talks, staleness=bound, train=train, max_new_tokens=24, group=8, how=how
    )
    rows = rows_of(out)
    assert max(row["rl/max_staleness"] for row in rows) == bound
    assert any(len(versions) > 1 for versions in seen) == (swap == "tokens")
    assert 0 < metrics["largest_gap"] < 1e-4
    assert all(0 <= row["rl/waited"] < 60 for row in rows)


@pytest.mark.long
def test_a_writer_that_is_killed_ends_the_run_which_then_goes_on(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = beside.Beside.renew

    def kill(self: beside.Beside, version: int, weights: Mapping[str, Any]) -> None:
        renew(self, version, weights)
        if version == 3:
            os.kill(self._process.pid, signal.SIGKILL)

    more: dict[str, Any] = {"staleness": 1, "how": {**HOW, "writer": "process"}}
    with monkeypatch.context() as patch:
        patch.setattr(beside.Beside, "renew", kill)
        with pytest.raises(ShunterError, match="the process that writes was ended by SIGKILL"):
            reinforce(work, model, talks, **more)
    out, _ = reinforce(work, model, talks, **more)
    assert len(json.loads((out / "rewards.json").read_text())) == 5


def learn(place: Path, base: Path, talks: Path) -> Path:
    """A training, or what is left of it, that notes what each step was learnt from."""
    inner = delayed.Delayed._learn

    def noted(self: delayed.Delayed, number: int, samples: Any) -> dict[str, float]:
        rows = [[row["step"], row["number"], row["answer"].prompt] for row in self._taken]
        with (place / "ledger").open("a") as file:
            file.write(json.dumps([number, os.getpid(), rows]) + "\n")
        assert isinstance(self.writer, beside.Beside)
        (place / "writer").write_text(str(self.writer._process.pid))
        return inner(self, number, samples)

    delayed.Delayed._learn = noted  # type: ignore[method-assign]
    how = {**HOW, "checkpoint_every": 3, "writer": "process"}
    train = {"steps": STEPS, "lr": 2e-3}
    out, _ = reinforce(
        work_in(place), base, talks, name="cut", how=how, train=train, staleness=1, max_new_tokens=12
    )
    return out


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] != "Z"  # ended, and nobody has asked how


@pytest.mark.long
def test_killed_by_the_kernel_each_row_is_learnt_from_once(model: Path, tmp_path: Path) -> None:
    """Ten times, while another process writes."""
    talks = talks_in(tmp_path / "talks" / "out").parent
    command = [sys.executable, "-m", "tests.jobs.test_beside_rl", str(tmp_path), str(model), str(talks)]
    draw = np.random.default_rng(0)
    kills = 0
    while kills < 10:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(float(draw.uniform(2.0, 5.0)))  # the writer's beginning takes the first two
        if child.poll() is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kills += 1
        if (tmp_path / "writer").exists():
            until(lambda: not alive(int((tmp_path / "writer").read_text())))  # who wrote for it ends too
            (tmp_path / "writer").unlink()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert kills >= 3, "it ended too soon to say much"
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    last = {number: rows for number, _, rows in lines}
    assert sorted(last) == list(range(STEPS))
    attempts: dict[int, list[int]] = {}
    for number, process, _ in lines:
        attempts.setdefault(process, []).append(number)
    begun = 0
    for numbers in attempts.values():
        first = numbers[0]
        assert numbers == list(range(first, first + len(numbers))), "each step once, in order"
        assert first % 3 == 0, "from a checkpoint"
        assert begun <= first, "no older one than before"
        begun = first
    for number, rows in last.items():
        assert [(step, at) for step, at, _ in rows] == [(number, at) for at in range(ROWS)]
    asked = [str(last[step][at][2]) for step in range(STEPS) for at in range(0, ROWS, 4)]
    for begin in range(0, STEPS * 3 - 12, 12):  # 12 prompts are an epoch
        assert len(set(asked[begin : begin + 12])) == 12


if __name__ == "__main__":
    print("begun", flush=True)
    learn(*(Path(each) for each in sys.argv[1:]))
