"""rl killed by the kernel at ten drawn times, begun again by a new process each time.

What this cannot show: that every instant was tried, and a machine that loses power.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shunter.record import events
from tests.jobs.conftest import work_in
from tests.jobs.test_post_jobs import HOW, model, reinforce
from tests.post.roles.small import talks_in

__all__ = ["model"]  # a fixture
ROOT = Path(__file__).resolve().parents[2]
KILLS = 10


def train(place: Path, base: Path, talks: Path, name: str, more: dict[str, Any]) -> Path:
    """The whole training, or what is left of it."""
    how = {**HOW, "deterministic": True, "checkpoint_every": 3, **more.pop("how", {})}
    out, _ = reinforce(
        work_in(place), base, talks, name=name, how=how, train={"steps": 16, "lr": 2e-3}, **more
    )
    return out


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        {"policy": {"algorithm": "grpo", "kl": 0.01}},
        {"policy": {"algorithm": "ppo", "epochs": 2}},
        {"how": {"placement": {"backend": "inline"}}},
        {"how": {"placement": {"arrangement": "colocate", "processes": 2}}},
        {"staleness": 1, "how": {"writer": "here"}},
        {"staleness": 1, "how": {"writer": "process"}},
        {"policy": {"algorithm": "ppo"}, "how": {"parallel": {"fsdp": 2}}},
    ],
    ids=["grpo", "ppo", "placed", "processes", "delayed", "beside", "laid-out"],
)
def test_ten_sigkills(model: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    talks = talks_in(tmp_path / "talks" / "out").parent
    more = {"max_new_tokens": 12, **more}
    begin = time.monotonic()
    whole = train(tmp_path, model, talks, "whole", json.loads(json.dumps(more)))
    seconds = time.monotonic() - begin
    command = [sys.executable, "-m", "tests.jobs.test_rl_sigkills", str(tmp_path), str(model), str(talks)]
    draw = np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        child = subprocess.Popen(
            [*command, json.dumps(more)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(float(draw.uniform(0.02, 0.4)) * seconds)
        if child.poll() is not None:  # it came through before its time
            break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kills += 1
    out = train(tmp_path, model, talks, "cut", json.loads(json.dumps(more)))
    assert kills >= KILLS // 2, "it ended too soon to say much"
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (out / "rewards.json").read_text() == (whole / "rewards.json").read_text()
    curves = [
        {row["step"]: row["rl/reward"] for row in events.read_metrics(folder.parent / "log" / "events.jsonl")}
        for folder in (out, whole)
    ]
    assert curves[0] == curves[1]


if __name__ == "__main__":
    print("begun", flush=True)
    place, base, talks, more = sys.argv[1:]
    train(Path(place), Path(base), Path(talks), "cut", json.loads(more))
