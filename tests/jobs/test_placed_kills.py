"""Placed roles that are killed while they write: nothing is written again, and all bits are the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.post.journal import Journal
from shunter.record import events, points
from tests.jobs.conftest import Work
from tests.jobs.test_placed import INLINE, model, reinforce, rewards, weights

__all__ = ["model"]  # a fixture


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


def one(*ids: int) -> Rollout:
    return Rollout(
        ids=list(ids),
        logprobs=[-0.1] * len(ids),
        prompt=[1],
        versions=[3] * len(ids),
        wrote=[True] * len(ids),
    )


def test_writers_share_a_journal_and_a_torn_line_is_one_answer_less(tmp_path: Path) -> None:
    mine, other = Journal(tmp_path, "of-0"), Journal(tmp_path, "of-1")
    mine.write(2, {0: one(5), 1: one(6, 7)})
    other.write(2, {4: one(8)})
    other.write(3, {0: one(9)})
    torn = tmp_path / "step-00000002-of-1.jsonl"
    with torn.open("a") as file:
        file.write('{"at": 5, "ids": [1')
    size = torn.stat().st_size
    assert mine.read(2, 3) == {0: one(5), 1: one(6, 7), 4: one(8)}
    assert torn.stat().st_size == size, "its writer may be about to end the line"
    assert other.read(2, 3).keys() == {0, 1, 4}
    other.write(2, {5: one(2)})
    assert mine.read(2, 3).keys() == {0, 1, 4, 5}
    assert mine.read(2, 4) == {}, "of other weights"
    mine.forget(3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003-of-1.jsonl"]


def killed_at(point: str, step: int) -> Any:
    def hook(name: str, facts: dict[str, Any]) -> None:
        if (name, facts["step"]) == (point, step):
            raise Killed

    return hook


def test_killed_amid_writing_whole_prompts_are_kept_and_the_bits_are_the_same(
    work: Work, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: after some answers to the second of three prompts, and before a later step is learnt."""
    whole, _ = reinforce(work, model, "whole", INLINE)
    write, submit = Journal.write, RolloutEngine.submit
    submitted: list[tuple[int, int]] = []

    def cut(self: Journal, step: int, answers: Any) -> None:
        amid = step == 1 and min(answers, default=0) >= 4  # the second prompt's, of which two are written
        write(self, step, dict(list(answers.items())[:2]) if amid else answers)
        if amid:
            raise Killed

    def noted(self: RolloutEngine, prompt: Any, stream: int, **more: Any) -> int:
        submitted.append((self.seed, stream))
        return submit(self, prompt, stream, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", cut)
        with pytest.raises(Killed):
            reinforce(work, model, "cut", INLINE)
    monkeypatch.setattr(RolloutEngine, "submit", noted)
    points.install(killed_at("train.update", 3))
    try:
        with pytest.raises(Killed):
            reinforce(work, model, "cut", INLINE)
    finally:
        points.install(None)
    seeds = {derive_seed(0, "rollout", step): step for step in range(4)}
    again = [(seeds[seed], stream) for seed, stream in submitted]
    wanted = {(1, at) for at in range(4, 12)} | {(step, at) for step in (2, 3) for at in range(12)}
    assert sorted(again) == sorted(wanted), "each that was not kept whole, once"
    submitted.clear()
    out, _ = reinforce(work, model, "cut", INLINE)
    assert submitted == [], "steps 2 and 3 were written before the second kill"
    assert weights(out) == weights(whole)
    assert rewards(out) == rewards(whole)
    told = events.read(out.parent / "log" / "events.jsonl")
    reused = [(event["step"], event["answers"]) for event in told if event["event"] == "reused"]
    assert reused == [(0, 12), (1, 4), (2, 12), (3, 12)]
    assert list(out.parent.glob("private/rollouts/actor/*.jsonl")) == [], "all steps are in the last state"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_processes_killed_while_they_write(work: Work, model: Path, seed: int) -> None:
    """A real SIGKILL to one of two processes, as soon as a step's first answers are in the journal."""
    whole, _ = reinforce(work, model, "whole", INLINE)
    place = {"arrangement": "colocate", "processes": 2}
    struck = 0
    for step in (0, 1, 3):
        private = whole.parents[1] / "cut" / "private" / "rollouts" / "actor"
        done = threading.Event()

        def strike(step: int = step, private: Path = private, done: threading.Event = done) -> None:
            while not done.is_set():
                if any(path.stat().st_size for path in private.glob(f"step-{step:08d}-*.jsonl")):
                    os.kill(workers()[seed], signal.SIGKILL)
                    return
                time.sleep(0.001)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            reinforce(work, model, "cut", place)
        except ShunterError as error:
            struck += "was ended by SIGKILL" in str(error)
        finally:
            done.set()
            thread.join()
    assert struck >= 2
    out, _ = reinforce(work, model, "cut", place)
    assert weights(out) == weights(whole)
    assert rewards(out) == rewards(whole)


def workers() -> list[int]:
    """Processes of roles that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"roles.worker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return sorted(found)
