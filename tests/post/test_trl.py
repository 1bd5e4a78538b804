"""The same losses as trl's, computed by trl's own code from the same log-probabilities.

Their trainers are not built: the loss is called with a stand-in for the trainer that has what it reads, and
for the model one that gives the log-probabilities. What trl does around the loss is not compared.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from shunter.post.batch import Sample, lay_out
from shunter.post.config import PolicyConfig
from shunter.post.judged import settings
from shunter.post.objective import Scores, loss_of
from shunter.post.policy import Policy, PolicySettings
from shunter.post.preference import DPO, BradleyTerry, SimPO

trl = pytest.importorskip("trl", reason="trl is a reference: pip install 'shunter[test]'")

LENGTHS = [5, 2, 7, 1]


def accelerator() -> Any:
    return SimpleNamespace(
        device="cpu",
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        unwrap_model=lambda x: x,
    )


def samples(seed: int) -> list[Sample]:
    """Prompts of one token, answers of LENGTHS tokens, one advantage an answer."""
    rng = np.random.default_rng(seed)
    found = []
    for length in LENGTHS:
        old = rng.normal(size=length)
        known = {"old": old, "reference": old + 0.3 * rng.normal(size=length)}
        known["advantage"] = np.full(length, rng.normal())
        found.append(Sample([1] + [2] * length, [False] + [True] * length, known))
    return found


def given(batch: Any) -> dict[str, torch.Tensor]:
    """What trl's trainers of policies read of a batch, but for old log-probabilities."""
    return {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.int64),
        "completion_ids": torch.from_numpy(batch.targets).clamp_min(0),
        "completion_mask": torch.from_numpy(batch.targets != -100).long(),
        "advantages": torch.from_numpy(batch.known["advantage"][:, 0]),
    }


def drawn(batch: Any, seed: int) -> torch.Tensor:
    """Log-probabilities that lie near `old`, some inside and some outside of the clip. [B, T]."""
    noise = np.random.default_rng(seed + 100).normal(size=batch.targets.shape)
    return torch.from_numpy(batch.known["old"] + 0.3 * noise).requires_grad_()


@pytest.mark.parametrize(
    ("kind", "level", "ours", "beta"),
    [
        ("grpo", "token", PolicySettings(), 0.0),
        ("grpo", "token", PolicySettings(kl=0.04), 0.04),
        ("bnpo", "token", PolicySettings(average="token"), 0.0),
        ("dapo", "token", PolicySettings(average="token", clip_high=0.28), 0.0),
        ("dr_grpo", "token", PolicySettings(average="constant", length=11), 0.0),
        ("grpo", "sequence", PolicySettings(ratio="sequence", clip_low=0.03, clip_high=0.04), 0.0),
        ("grpo", "sequence", PolicySettings(ratio="sequence", kl=0.1), 0.1),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_policy_losses(kind: str, level: str, ours: PolicySettings, beta: float, seed: int) -> None:
    batch = lay_out(samples(seed))
    logprob = drawn(batch, seed)
    objective = Policy(ours)
    loss = loss_of(objective.terms(Scores(logprob), batch, objective.weights(batch)))
    mask = torch.from_numpy(batch.targets != -100)
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer = mock.MagicMock(
        loss_type=kind, importance_sampling_level=level, beta=beta, epsilon_low=ours.clip_low,
        epsilon_high=ours.clip_high, args=args, max_completion_length=11, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, aux_loss_enabled=False, use_vllm=False,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, accelerator=accelerator(),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    trainer._get_per_token_logps_and_entropies.return_value = (logprob, torch.zeros_like(logprob), None)
    inputs = {
        **given(batch),
        "old_per_token_logps": torch.from_numpy(batch.known["old"]),
        "ref_per_token_logps": torch.from_numpy(batch.known["reference"]),
        "num_items_in_batch": mask.sum(),
    }
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    torch.testing.assert_close(loss, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(loss, logprob), torch.autograd.grad(theirs, logprob), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_whole_answers(seed: int) -> None:
    """RLOO, by its own trainer."""
    ours = settings(PolicyConfig(algorithm="rloo"), 11)
    batch = lay_out(samples(seed))
    logprob = drawn(batch, seed)
    objective = Policy(ours)
    loss = loss_of(objective.terms(Scores(logprob), batch, objective.weights(batch)))
    mask = torch.from_numpy(batch.targets != -100)
    trainer = mock.MagicMock(
        epsilon_low=ours.clip_low, epsilon_high=ours.clip_high, aux_loss_enabled=False,
        accelerator=accelerator(), _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    trainer._get_per_token_logps_and_entropies.return_value = (logprob, torch.zeros_like(logprob), None)
    inputs = {
        **given(batch),
        "old_logps": (torch.from_numpy(batch.known["old"]) * mask).sum(1),
    }
    theirs = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
    torch.testing.assert_close(loss, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(loss, logprob), torch.autograd.grad(theirs, logprob), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_preference_without_a_reference() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    batch = lay_out(samples(0))
    logprob = drawn(batch, 0)
    objective = SimPO(2.0, 0.5)
    loss = loss_of(objective.terms(Scores(logprob), batch, objective.weights(batch)))
    mask = torch.from_numpy(batch.targets != -100)
    means = (logprob * mask).sum(1) / mask.sum(1)
    trainer = mock.MagicMock(
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=0.5,
        beta=2.0,
        label_smoothing=0.0,
        accelerator=accelerator(),
    )
    theirs, _, _ = cpo.CPOTrainer.cpo_loss(trainer, means[0::2], means[1::2])
    torch.testing.assert_close(loss, theirs.mean(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "normalised"), [("sigmoid", False), ("sigmoid_norm", True)])
def test_preference_losses(kind: str, normalised: bool) -> None:
    batch = lay_out(samples(0))
    logprob = drawn(batch, 0)
    objective = DPO(0.7, normalised=normalised)
    loss = loss_of(objective.terms(Scores(logprob), batch, objective.weights(batch)))
    # trl has all better answers first, and a mask that begins with the first token.
    order = torch.tensor([0, 2, 1, 3])
    mask = torch.from_numpy(batch.targets != -100)[order]
    whole = torch.cat([torch.zeros(4, 1, dtype=torch.bool), mask], dim=1)
    reference = (torch.from_numpy(batch.known["reference"])[order] * mask).sum(1)
    trainer = mock.MagicMock(
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=[kind], loss_weights=[1.0], beta=0.7, use_weighting=False, accelerator=accelerator(),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
    )  # fmt: skip
    masked = torch.where(mask, logprob[order], 0.0)
    inputs = {
        "input_ids": whole.long(),
        "attention_mask": whole.long(),
        "completion_mask": whole.long(),
        "ref_chosen_logps": reference[:2],
        "ref_rejected_logps": reference[2:],
    }
    seen = SimpleNamespace(log_probs=masked, entropy=masked, mean_logits=masked, is_top1=mask)
    theirs = trl.DPOTrainer._compute_loss(trainer, lambda **_: seen, inputs, return_outputs=False)
    torch.testing.assert_close(loss, theirs, rtol=1e-10, atol=1e-10)


def test_reward_loss() -> None:
    batch = lay_out(samples(0))
    value = torch.randn(batch.targets.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = BradleyTerry(centre=0.01)
    loss = loss_of(objective.terms(Scores(value=value), batch, objective.weights(batch)))
    last = value[torch.arange(4), torch.tensor(LENGTHS) - 1][torch.tensor([0, 2, 1, 3])]
    trainer = mock.MagicMock(
        args=SimpleNamespace(center_rewards_coefficient=0.01), accelerator=accelerator(), _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
    )  # fmt: skip
    model = mock.MagicMock(return_value=SimpleNamespace(logits=last[:, None]))
    theirs = trl.RewardTrainer.compute_loss(trainer, model, {"attention_mask": torch.ones(4, 8)})
    torch.testing.assert_close(loss, theirs, rtol=1e-10, atol=1e-10)
