"""What people are told where a training fails, or leaves something out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from shunter.config.errors import ShunterError
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks

__all__ = ["model", "talks"]  # fixtures


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
def test_scores_that_are_not_finite_name_job_and_step(
    work: Work, model: Path, talks: Path, tmp_path: Path, placement: Any
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    for weight in weights.values():
        weight.fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShunterError, match=r"^tuned, step 1: the model's scores are not finite"):
        reinforce(work, broken, talks, "tuned", how={**HOW, "placement": placement})


@pytest.mark.parametrize(
    "more", [{}, {"staleness": 1, "how": {**HOW, "writer": "here"}}], ids=["newest", "older"]
)
def test_answers_that_are_not_graded_are_one_line_a_step(
    work: Work, model: Path, talks: Path, more: dict[str, Any]
) -> None:
    """Each prompt is asked once in the four steps; of two there is no number to compare with."""
    lines = [json.loads(line) for line in (talks / "train.jsonl").read_text().splitlines()]
    for line in lines[4:6]:
        line["messages"][-1]["content"] = "none"
    (talks / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = {"steps": 4, "lr": 1e-3}
    out, metrics = reinforce(work, model, talks, rewards=[{"kind": "number"}], train=train, **more)
    read = events.read(out.parent / "log" / "events.jsonl")
    problems = [each["problem"] for each in read if each["event"] == "problem"]
    told = [each for each in problems if "were not graded" in each]  # besides: that all are worth the same
    form = r"step (\d): (4|8) of 12 answers were not graded, the first to the prompt [45] \(number: "
    found = [re.match(form, sentence) for sentence in told]
    assert all(found), told
    steps, counts = zip(*[(each[1], int(each[2])) for each in found if each], strict=True)
    assert len(set(steps)) == len(steps)
    assert sum(counts) == metrics["not_graded"] == 8
