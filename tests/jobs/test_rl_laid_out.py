"""The job `rl` on several processes: the answers and the model of one process, over kills and other layouts.

What this cannot show: ranks on several machines, and a GPU for each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.launch.inject import VARIABLE
from shunter.launch.recur import RankDied
from shunter.models.hf import load_model
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks, weights

__all__ = ["model", "talks"]  # fixtures


def laid_out(
    work: Work, model: Path, talks: Path, name: str, parallel: Any, **more: Any
) -> tuple[Path, dict[str, Any]]:
    how = {**HOW, **more.pop("how", {}), "parallel": parallel}
    return reinforce(work, model, talks, name=name, how=how, **more)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return events.read_metrics(out.parent / "log" / "events.jsonl")


def rewards(out: Path) -> list[float]:
    found: list[float] = json.loads((out / "rewards.json").read_text())
    return found


def alike(one: Path, two: Path) -> None:
    """To float32's rounding."""
    theirs = load_file(two / "model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        assert np.allclose(theirs[name], tensor, rtol=1e-3, atol=2e-4), name


@pytest.mark.long
@pytest.mark.parametrize("axis", ["dp", "fsdp", "cp", "tp", "pp"])
def test_two_processes_write_and_learn_as_one(work: Work, model: Path, talks: Path, axis: str) -> None:
    """Answers are the same, token for token, where rounding does not bring a draw over its border."""
    policy = {"algorithm": "ppo", "kl": 0.02} if axis in ("fsdp", "pp") else {"algorithm": "grpo", "kl": 0.05}
    alone, _ = laid_out(work, model, talks, "alone", None, policy=policy)
    out, metrics = laid_out(work, model, talks, axis, {axis: 2}, policy=policy)
    assert rewards(out) == rewards(alone)
    alike(alone, out)
    assert 0 < metrics["largest_gap"] < 1e-5
    for mine, theirs in zip(rows_of(out), rows_of(alone), strict=True):
        for name in ("rl/length", "rl/kl", "rl/clipped", "train/grad_norm", "rl/staleness"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
    shown = [
        [json.loads(line)["response"] for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (out, alone)
    ]
    assert shown[0] == shown[1]
    assert load_model(out).spec == load_model(model).spec


@pytest.mark.long
@pytest.mark.parametrize("parallel", [{"dp": 2}, {"fsdp": 2}], ids=str)
def test_ranks_that_are_killed_go_on_with_the_same_bits(
    work: Work, model: Path, talks: Path, parallel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two ranks by SIGKILL, in the middle of an update and of the next attempt's."""
    more: dict[str, Any] = {"how": {"deterministic": True}, "train": {"steps": 6, "lr": 2e-3}}
    whole, _ = laid_out(work, model, talks, "whole", parallel, **more)
    for step, rank in ((3, 1), (4, 0)):
        fault = {"kind": "kill", "point": "train.update", "step": step, "rank": rank}
        monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
        with pytest.raises(RankDied, match=f"rank {rank} was ended by SIGKILL"):
            laid_out(work, model, talks, "cut", parallel, **more)
    monkeypatch.delenv(VARIABLE)
    out, _ = laid_out(work, model, talks, "cut", parallel, **more)
    assert weights(out) == weights(whole)
    assert rewards(out) == rewards(whole)
    curves = [{row["step"]: row["rl/reward"] for row in rows_of(folder)} for folder in (out, whole)]
    assert curves[0] == curves[1]


SLOW = "import time; time.sleep(1); print(0.5)"


@pytest.mark.long
def test_grading_may_take_longer_than_ranks_may_be_silent(
    work: Work, model: Path, talks: Path, tmp_path: Path
) -> None:
    """Twelve answers, a second each by the clock, on as many cores as there are."""
    (tmp_path / "slow.py").write_text(SLOW)
    slow = {"kind": "checker", "file": "slow.py", "known": [{"answer": "a", "score": 0.5}]}
    timeout = 8.0 / len(os.sched_getaffinity(0))
    out, _ = laid_out(
        work, model, talks, "slow", {"dp": 2, "timeout": timeout}, rewards=[slow],
        train={"steps": 1, "lr": 1e-3},
    )  # fmt: skip
    assert rewards(out) == [0.5]
    (row,) = rows_of(out)
    assert row["rl/grading_seconds"] > timeout


@pytest.mark.long
def test_a_killed_run_of_two_processes_goes_on_in_one(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = laid_out(work, model, talks, "whole", None, policy={"kl": 0.05})
    fault = {"kind": "exception", "point": "train.update", "step": 3, "rank": 0}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(RuntimeError, match=r"rank 0 failed:\n(.|\n)*injected at train.update"):
        laid_out(work, model, talks, "cut", {"fsdp": 2}, policy={"kl": 0.05})
    monkeypatch.delenv(VARIABLE)
    out, _ = laid_out(work, model, talks, "cut", None, policy={"kl": 0.05})
    resumed = [e["step"] for e in events.read(out.parent / "log" / "events.jsonl") if e["event"] == "resume"]
    assert resumed == [2]
    assert rewards(out) == rewards(whole)
    alike(whole, out)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "plan": ({"how": {"parallel": {"plan": "plan.yaml"}}}, "plans are made for rows of tokens"),
    "vocabulary": ({"how": {"parallel": {"pp": 2, "vocabulary": 1}}}, "scores of answers are made by one"),
    "few": (
        {"how": {"parallel": {"dp": 4, "pp": 2}}},
        "12 answers a step cannot be cut into 4 micro-batches",
    ),
    "updates": ({"policy": {"updates": 8}, "how": {"parallel": {"dp": 2}}}, "1 answers a step cannot be cut"),
    "critic": ({"policy": {"algorithm": "ppo"}, "how": {"parallel": {"dp": 2, "zero": 1}}}, "a value head's"),
    "timeline": ({"how": {"parallel": {"dp": 2, "timeline": 1}}}, "are not recorded rank by rank"),
    "groups": ({"policy": {"least_groups": 2}, "how": {"parallel": {"dp": 2}}}, "too few answers for a"),
    "staleness": ({"staleness": 1, "how": {"parallel": {"dp": 2}}}, "always with the newest weights"),
    "writer": ({"how": {"parallel": {"dp": 2}, "writer": "process"}}, "always with the newest weights"),
    "placement": ({"how": {"parallel": {"dp": 2}, "placement": {"backend": "inline"}}}, "of their own"),
    "adapter": ({"adapter": {"rank": 2}, "how": {"parallel": {"dp": 2}}}, "adapters that learn from answers"),
    "server": (
        {"generator": "vllm", "how": {"parallel": {"dp": 2}, "server": {"url": "http://127.0.0.1:1"}}},
        "a server writes for a learner in one process",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_laid_out_is_refused_in_a_sentence(work: Work, what: str) -> None:
    more, why = REFUSALS[what]
    with pytest.raises(ShunterError, match=why):
        reinforce(work, Path(), Path(), **{**more, "how": {**HOW, **more["how"]}})
