"""`value_model`: the value model of PPO begins as a reward model, as Tulu 3's does (arXiv 2411.15124).

What this cannot show: whether a value model that begins so learns faster.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.jobs import rl
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, save_model
from shunter.models.init import init_weights
from shunter.post.course import Pupil
from shunter.post.reward_model import load_head, new_head, save_head
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, talks

__all__ = ["model", "talks"]  # fixtures


@pytest.fixture
def judge(model: Path, tmp_path: Path) -> Path:
    """A reward model of other weights than the policy's, with a head that is not zero."""
    folder = tmp_path / "judge" / "out"
    decoder = load_model(model)
    draw = torch.Generator().manual_seed(1)
    head = new_head(decoder.spec.dim)
    with torch.no_grad():
        for weight in (*decoder.parameters(), *head.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    save_model(decoder, folder, tokenizer_folder=model)
    save_head(head, folder)
    return folder


def learn(*given: Any, **more: Any) -> Path:
    return learnt(*given, **more)[0]


def learnt(
    work: Work, model: Path, talks: Path, judge: Path, name: str = "rl", **more: Any
) -> tuple[Path, dict[str, Any]]:
    config = {
        "model": "m", "prompts": "t", "value_model": "v", "policy": {"algorithm": "ppo"}, "group": 4,
        "rewards": [{"kind": "format", "pattern": ".*[a-m].*"}], "prompts_per_step": 3, "max_new_tokens": 5,
        "train": {"steps": 2, "lr": 1e-3}, "how": HOW, **more,
    }  # fmt: skip
    inputs = {"model": model, "prompts": talks, "value_model": judge}
    return work(rl.JOB, config, inputs=inputs, name=name)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights with which each value model begins."""
    found: list[dict[str, torch.Tensor]] = []
    init = Pupil.__init__

    def noted(pupil: Pupil, *given: Any, **more: Any) -> None:
        init(pupil, *given, **more)
        if pupil.value is not None:
            found.append({name: each.clone() for name, each in pupil.module.state_dict().items()})

    monkeypatch.setattr(Pupil, "__init__", noted)
    return found


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
def test_it_begins_with_the_reward_models_weights_and_head(
    work: Work,
    model: Path,
    talks: Path,
    judge: Path,
    begun: list[dict[str, torch.Tensor]],
    placement: Any,
) -> None:
    learn(work, model, talks, judge, how={**HOW, "placement": placement})
    (found,) = begun
    wanted = {f"decoder.{name}": each for name, each in load_model(judge).state_dict().items()}
    wanted |= {f"value.{name}": each for name, each in load_head(judge).state_dict().items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["value.weight"].any()


def test_placed_it_learns_as_without(work: Work, model: Path, talks: Path, judge: Path) -> None:
    plain = learn(work, model, talks, judge, "plain")
    placed = learn(work, model, talks, judge, "placed", how={**HOW, "placement": {"backend": "inline"}})
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (plain, placed))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_one_of_another_shape_learns_and_its_cost_is_not_foretold(
    work: Work, model: Path, talks: Path, tmp_path: Path
) -> None:
    """The account would else be of two models of one size."""
    folder = tmp_path / "small" / "out"
    small = Decoder(load_model(model).spec.model_copy(update={"num_layers": 1}))
    init_weights(small, 0)
    save_model(small, folder, tokenizer_folder=model)
    save_head(new_head(small.spec.dim), folder)
    _, metrics = learnt(work, model, talks, folder)
    assert "of another shape" in metrics["account"]["unpredicted"]


@pytest.mark.long
@pytest.mark.parametrize("axis", ["fsdp", "pp"])
def test_laid_out_it_learns_as_in_one_process(
    work: Work, model: Path, talks: Path, judge: Path, axis: str
) -> None:
    plain = learn(work, model, talks, judge, "plain")
    spread = learn(work, model, talks, judge, axis, how={**HOW, "parallel": {axis: 2}})
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (plain, spread))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-4)
    mine, other = (
        [row["rl/value_error"] for row in events.read_metrics(folder.parent / "log" / "events.jsonl")]
        for folder in (plain, spread)
    )
    assert mine == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
def test_what_cannot_be_a_value_model_is_refused(
    work: Work, model: Path, talks: Path, judge: Path, tmp_path: Path, placement: Any
) -> None:
    how = {**HOW, "placement": placement}
    with pytest.raises(ValueError, match="value_model belongs to ppo; grpo has no value model"):
        learn(work, model, talks, judge, policy={"algorithm": "grpo"}, how=how)
    with pytest.raises(ShunterError, match="has no reward head"):
        learn(work, model, talks, model, "no-head", how=how)
    for key, number, words in (
        ("vocab_size", 7, "has one of 7"),
        ("max_position_embeddings", 9, "has one of 9"),
    ):
        other = tmp_path / key / "out"
        shutil.copytree(judge, other)
        told = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**told, key: number}))
        with pytest.raises(ShunterError, match=words):
            learn(work, model, talks, other, key, how=how)


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
@pytest.mark.parametrize("use", ["value_model", "reward_model"])
def test_one_of_another_tokenizer_is_refused(
    work: Work, model: Path, talks: Path, judge: Path, use: str, placement: Any
) -> None:
    """Though of the same size: it would read other words. A file in other lines is none."""
    config = {
        "model": "m", "prompts": "t", use: "v", "group": 4, "prompts_per_step": 3, "max_new_tokens": 5,
        "rewards": [{"kind": "model"} if use == "reward_model" else {"kind": "number"}],
        "policy": {"algorithm": "ppo" if use == "value_model" else "grpo"},
        "train": {"steps": 1, "lr": 1e-3}, "how": {**HOW, "placement": placement},
    }  # fmt: skip
    inputs = {"model": model, "prompts": talks, use: judge}
    path = judge / "tokenizer.json"
    told = json.loads(path.read_text())
    words = told["model"]["vocab"]
    path.write_text(json.dumps(told, indent=3))
    work(rl.JOB, config, inputs=inputs, name="written-otherwise")
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(told))
    first = min(words["a"], words["b"])
    with pytest.raises(ShunterError, match=rf"2 of \d+ tokens are others to it, the first {first} \('a'\)"):
        work(rl.JOB, config, inputs=inputs, name="swapped")


def test_a_job_without_one_is_the_job_it_was() -> None:
    """Its identity holds no word of it."""
    config = {
        "kind": "rl", "model": "m", "prompts": "t", "rewards": [{"kind": "number"}], "train": {"steps": 1}
    }  # fmt: skip
    assert "value_model" not in rl.RlConfig.model_validate(config).model_dump()
    more = {**config, "value_model": "v", "policy": {"algorithm": "ppo"}}
    assert rl.RlConfig.model_validate(more).model_dump()["value_model"] == "v"
