"""dpo and reward_model on several processes: the model of one process, and a run that goes on elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.jobs import dpo, reward_model
from shunter.launch.inject import VARIABLE
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, pairs

__all__ = ["model", "pairs"]  # fixtures

JOBS: dict[str, Any] = {"dpo": dpo.JOB, "reward_model": reward_model.JOB}
TRAIN = {"steps": 5, "lr": 1e-3}


def learn(
    work: Work, model: Path, pairs: Path, kind: str, name: str, parallel: Any, **more: Any
) -> tuple[Path, dict[str, Any]]:
    config = {"model": "m", "pairs": "p", "batch_pairs": 4, "train": TRAIN, "validate_every": 2,
              "how": {**HOW, "parallel": parallel}, **more}  # fmt: skip
    return work(JOBS[kind], config, inputs={"model": model, "pairs": pairs}, name=name)


def must_be_alike(one: tuple[Path, dict[str, Any]], two: tuple[Path, dict[str, Any]]) -> None:
    """To float32's rounding: weights, the head, held-out numbers, and what each step told."""
    for file in one[0].glob("*.safetensors"):
        others = load_file(two[0] / file.name)
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    assert (two[0] / "tokenizer.json").is_file()
    for name in ("heldout_loss", "heldout_margin", "pairs", "parameters"):
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-3, abs=1e-4), name
    rows = [events.read_metrics(out.parent / "log" / "events.jsonl") for out, _ in (one, two)]
    assert len(rows[0]) == TRAIN["steps"]
    # In the first step a policy is its own reference: which of two zeros is larger is a matter of rounding.
    told = ("pairs/loss", "train/grad_norm", "pairs/accuracy")
    for number, (mine, theirs) in enumerate(zip(*rows, strict=True)):
        for key in told if number else told[:2]:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-4), (number, key)


@pytest.mark.long
def test_a_killed_run_of_two_processes_goes_on_in_one(
    work: Work, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows spread over two ranks (cp); the checkpoint of step 2 and the reference are what they left."""
    whole = learn(work, model, pairs, "dpo", "whole", None)
    fault = {"kind": "exception", "point": "train.update", "step": 3, "rank": 0}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(RuntimeError, match=r"rank 0 failed:\n(.|\n)*injected at train.update"):
        learn(work, model, pairs, "dpo", "cut", {"cp": 2})
    monkeypatch.delenv(VARIABLE)
    out, metrics = learn(work, model, pairs, "dpo", "cut", None)
    resumed = [
        event for event in events.read(out.parent / "log" / "events.jsonl") if event["event"] == "resume"
    ]
    assert [event["step"] for event in resumed] == [2]
    for name, tensor in load_file(whole[0] / "model.safetensors").items():
        mine = load_file(out / "model.safetensors")[name]
        torch.testing.assert_close(mine, tensor, rtol=1e-3, atol=2e-4, msg=name)
    assert metrics["heldout_margin"] == pytest.approx(whole[1]["heldout_margin"], rel=1e-3, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("axis", ["dp", "fsdp", "cp", "tp", "pp"])
def test_two_processes_make_the_model_of_one(
    work: Work, model: Path, pairs: Path, kind: str, axis: str
) -> None:
    alone = learn(work, model, pairs, kind, "alone", None)
    two = learn(work, model, pairs, kind, axis, {axis: 2, "timeline": 1})
    must_be_alike(alone, two)
    ranks = two[1]["account"]["ranks"]
    assert len(ranks) == 2
    for each in ranks:
        assert each["peak_bytes"] > 0
        assert 0 < each["sent_bytes"] < 2 * each["plan_sent_bytes"]


@pytest.mark.long
@pytest.mark.parametrize("kind", JOBS)
def test_a_killed_run_of_one_process_goes_on_in_two(
    work: Work, model: Path, pairs: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(work, model, pairs, kind, "whole", None)
    with monkeypatch.context() as patch:
        patch.setattr("shunter.post.preferences.Preferences.validate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            learn(work, model, pairs, kind, "cut", None, validate_every=3)
    out, _ = learn(work, model, pairs, kind, "cut", {"fsdp": 2}, validate_every=3)
    for file in out.glob("*.safetensors"):
        for name, tensor in load_file(whole[0] / file.name).items():
            torch.testing.assert_close(load_file(file)[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "plan": ({"plan": "plan.yaml"}, "plans are made for rows of tokens"),
    "vocabulary": ({"pp": 2, "vocabulary": 1}, "scores of answers are made by one"),
    "layers": ({"dp": 2, "layers": [{"of": [0], "tp": 2}]}, "degrees of their own are not tried"),
    "ends": ({"dp": 2, "ends": {"tp": 2}}, "embedding and head are not tried"),
    "zero": ({"dp": 2, "zero": 1}, "a value head's is not shared"),
    "few": ({"dp": 4, "pp": 2}, "4 pairs a step cannot be cut into 4 micro-batches on each of 4 data ranks"),
    "schedule": ({"pp": 2, "schedule": "forward-only"}, "trains nothing"),
    "gather": ({"fsdp": 2, "gather": "bf16"}, "takes weights whole"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_laid_out_is_refused_in_a_sentence(work: Work, what: str) -> None:
    parallel, why = REFUSALS[what]
    with pytest.raises(ShunterError, match=why):
        learn(work, Path(), Path(), "reward_model", "never", parallel)


def test_adapters_on_several_processes_are_refused(work: Work) -> None:
    with pytest.raises(ShunterError, match="adapters that learn from pairs are not tried"):
        learn(work, Path(), Path(), "dpo", "never", {"dp": 2}, adapter={"rank": 2})
