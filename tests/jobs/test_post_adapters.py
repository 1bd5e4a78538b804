"""dpo and rl by adapters: what learns, what the reference is, who writes the answers, and stops.

Models are random: nothing here shows how well adapters learn, which `rank` and rate are for a person to find.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import rollouts
from shunter.jobs import dpo
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model
from shunter.post.batch import Sample
from shunter.post.before import Before
from shunter.post.preferences import of_each
from shunter.post.step import Scorer
from shunter.recipe.job import Stopped
from shunter.record import events
from shunter.surgery.adapter_folder import merge_adapter
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach, merged
from tests.jobs.conftest import Still, Work
from tests.jobs.test_post_jobs import HOW, model, pairs, reinforce, talks, weights

__all__ = ["model", "pairs", "talks"]  # fixtures
SMALL = {"rank": 4}


def adapted(model: Path, **config: Any) -> Decoder:
    """With adapters, and what else is trained, moved from where they began."""
    decoder = load_model(model)
    attach(decoder, AdapterConfig.model_validate({**SMALL, **config}), 0)
    return decoder


def move(decoder: Decoder) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))


def same_as_the_base_with_its_adapters(out: Path, model: Path) -> bool:
    base = load_model(model)
    assert merge_adapter(base, out / "adapter") > 0
    pairs = zip(base.parameters(), load_model(out).parameters(), strict=True)
    return all(torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7) for mine, theirs in pairs)


@pytest.mark.parametrize("also", [[], ["norms", "embed"]], ids=str)
def test_before_is_the_model_under_the_adapters_whatever_was_learnt(model: Path, also: list[str]) -> None:
    cpu = torch.device("cpu")
    decoder = adapted(model, also=also)
    before = Before(decoder, cpu, temperature=0.7)
    samples = [Sample([5, 6, 7, 8], [False, True, True, True]), Sample([9, 4, 3], [False, False, True])]
    base = of_each(Scorer(load_model(model), cpu, temperature=0.7), samples, 64)
    move(decoder)
    now = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    kept = {name: parameter.data_ptr() for name, parameter in decoder.named_parameters()}
    told = of_each(before, samples, 64)
    moved = of_each(Scorer(decoder, cpu, temperature=0.7), samples, 64)
    for first, then, later in zip(base, told, moved, strict=True):
        assert first == pytest.approx(then, abs=1e-6)
        assert abs(first - later).max() > 1e-3
    assert all(tensor.equal(now[name]) for name, tensor in decoder.state_dict().items())
    assert {name: p.data_ptr() for name, p in decoder.named_parameters()} == kept


@pytest.mark.parametrize("quantise", ["none", "int8"])
def test_a_model_with_adapters_writes_what_it_writes_when_they_are_merged(model: Path, quantise: str) -> None:
    """And its log-probabilities are the trainer's."""
    decoder = adapted(model, quantise=quantise, targets=["q", "out", "up"])
    move(decoder)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=8, batch=4)
    prompts = [[5, 6, 7], [8, 9], [4, 3, 2, 1]]
    mine, theirs = (rollouts(each, prompts, sampling, set(), 0) for each in (decoder, merged(decoder)))
    scorer = Scorer(decoder, torch.device("cpu"))
    samples = [Sample([*one.prompt, *one.ids], [False] * len(one.prompt) + one.wrote) for one in mine]
    for one, other, says in zip(mine, theirs, of_each(scorer, samples, 64), strict=True):
        assert one.ids == other.ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.logprobs == pytest.approx(list(says), abs=1e-5)


def test_rl_by_adapters_keeps_to_the_base(work: Work, model: Path, talks: Path) -> None:
    policy = {"algorithm": "grpo", "kl": 0.1, "updates": 2}
    out, metrics = reinforce(work, model, talks, adapter=SMALL, policy=policy, train={"steps": 4, "lr": 1e-2})
    assert metrics["largest_gap"] < 1e-4
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert rows[0]["rl/kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["rl/kl"] > 1e-4
    assert weights(out) != weights(model)
    assert same_as_the_base_with_its_adapters(out, model)
    checkpoint = sorted((out.parent / "private" / "checkpoints").glob("step-*/tensors.json"))[-1]
    held = [name for name in json.loads(checkpoint.read_text()) if name.startswith("policy.model.")]
    assert {name.split(".")[-2] for name in held} == {"a", "b"}, "frozen weights are in no checkpoint"


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("ppo", marks=pytest.mark.long)])
def test_rl_by_adapters_goes_on_after_a_stop(work: Work, model: Path, talks: Path, algorithm: str) -> None:
    more = {
        "adapter": SMALL,
        "policy": {"algorithm": algorithm, "kl": 0.1},
        "how": {**HOW, "deterministic": True},
    }
    whole, _ = reinforce(work, model, talks, "whole", **more)
    with pytest.raises(Stopped):
        reinforce(work, model, talks, "cut", control=Still(stop_after=3), **more)
    out, _ = reinforce(work, model, talks, "cut", **more)
    assert weights(out) == weights(whole)


def test_dpo_by_adapters_has_the_reference_of_the_base(work: Work, model: Path, pairs: Path) -> None:
    found = []
    for name, adapter in (("whole", None), ("adapters", SMALL)):
        config = {
            "model": "m", "pairs": "p", "batch_pairs": 4, "adapter": adapter,
            "train": {"steps": 6, "lr": 1e-2}, "how": HOW,
        }  # fmt: skip
        out, metrics = work(dpo.JOB, config, inputs={"model": model, "pairs": pairs}, name=name)
        kept = load_file(out.parent / "private" / "reference.safetensors")["reference"]
        found.append((out, metrics, kept))
    (whole, _, reference), (out, metrics, same) = found
    torch.testing.assert_close(same, reference, rtol=0, atol=1e-6)
    assert metrics["heldout_accuracy"] > 0.9
    assert same_as_the_base_with_its_adapters(out, model)
    assert not (whole / "adapter").exists()


def test_roles_on_processes_train_whole_models(work: Work, model: Path, talks: Path) -> None:
    with pytest.raises(ShunterError, match="no adapters"):
        reinforce(work, model, talks, adapter=SMALL, how={**HOW, "placement": {"backend": "inline"}})
