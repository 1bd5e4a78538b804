"""Every objective against a plain loop over sequences, however the samples are laid out.

Scores are drawn, not computed: that a model gives the same ones in every layout is shown in test_step.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shunter.data.tokens import IGNORE
from shunter.post.batch import Sample, lay_out
from shunter.post.divergence import divergence
from shunter.post.objective import Likelihood, ScoreObjective, Scores, loss_of
from shunter.post.policy import Policy, PolicySettings, Value
from shunter.post.preference import DPO, SimPO
from tests.post.layouts import LAYOUTS, draw, evaluate, places

# What each objective is, written down once more: a function of lists of tensors, one a sequence.
Plain = Callable[[list[Tensor], list[Sample]], Tensor]


def known(sample: Sample, name: str) -> Tensor:
    return torch.as_tensor(np.asarray(sample.known[name]))


def plain_dpo(beta: float, normalised: bool, smoothing: float) -> Plain:
    def loss(scores: list[Tensor], samples: list[Sample]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(0, len(samples), 2):
            rewards = []
            for s, sample in zip(scores[i : i + 2], samples[i : i + 2], strict=True):
                gain = (s - known(sample, "reference")).sum()
                rewards.append(beta * (gain / max(1, len(s)) if normalised else gain))
            x = rewards[0] - rewards[1]
            total = total - (1 - smoothing) * F.logsigmoid(x) - smoothing * F.logsigmoid(-x)
        return total / (len(samples) // 2)

    return loss


def plain_simpo(scores: list[Tensor], samples: list[Sample]) -> Tensor:
    means = [s.sum() / max(1, len(s)) for s in scores]
    pairs = range(0, len(samples), 2)
    return sum(-F.logsigmoid(2.0 * (means[i] - means[i + 1]) - 0.5) for i in pairs) / len(pairs)


def plain_policy(s: PolicySettings) -> Plain:
    def loss(scores: list[Tensor], samples: list[Sample]) -> Tensor:
        tokens = sum(len(x) for x in scores)
        total = torch.zeros((), dtype=torch.float64)
        for logprob, sample in zip(scores, samples, strict=True):
            if not len(logprob):
                continue
            ratio = (logprob - known(sample, "old")).exp()
            if s.ratio == "sequence":
                ratio = (logprob - known(sample, "old")).mean().exp().expand_as(ratio)
            if s.ratio == "sum":
                ratio = (logprob - known(sample, "old")).sum().exp().expand_as(ratio)
            advantage = known(sample, "advantage")
            clipped = ratio.clamp(1 - s.clip_low, 1 + s.clip_high) * advantage
            each = -torch.minimum(ratio * advantage, clipped)
            if s.kl:
                each = each + s.kl * divergence(logprob, known(sample, "reference"), s.estimator)
            share = {
                "sequence": each.mean() / len(samples),
                "token": each.sum() / max(1, tokens),
                "constant": each.sum() / (len(samples) * s.length),
            }[s.average]
            total = total + share - s.entropy * logprob.square().sum() / max(1, tokens)
        return total

    return loss


def plain_value(scores: list[Tensor], samples: list[Sample]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value, sample in zip(scores, samples, strict=True):
        old, aim = known(sample, "value"), known(sample, "return")
        moved = torch.minimum(torch.maximum(value, old - 0.3), old + 0.3)
        total = total + torch.maximum((value - aim) ** 2, (moved - aim) ** 2).sum()
    return 0.1 * 0.5 * total / max(1, sum(len(s) for s in scores))


def plain_likelihood(scores: list[Tensor], samples: list[Sample]) -> Tensor:
    return -sum(s.sum() for s in scores) / max(1, sum(len(s) for s in scores))


POLICIES = {
    "ppo": PolicySettings(average="token"),
    "grpo": PolicySettings(kl=0.05),
    "grpo-k2": PolicySettings(kl=0.05, estimator="k2"),
    "dapo": PolicySettings(average="token", clip_high=0.28),
    "dr-grpo": PolicySettings(average="constant", length=16),
    "gspo": PolicySettings(ratio="sequence", clip_low=0.01, clip_high=0.02),
    "rloo": PolicySettings(ratio="sum"),
    "with entropy": PolicySettings(average="token", entropy=0.01),
}
CASES: dict[str, tuple[ScoreObjective, Plain]] = {
    "sft": (Likelihood(), plain_likelihood),
    "dpo": (DPO(0.3), plain_dpo(0.3, False, 0.0)),
    "dpo-normalised": (DPO(2.0, normalised=True, smoothing=0.1), plain_dpo(2.0, True, 0.1)),
    "simpo": (SimPO(2.0, 0.5), plain_simpo),
    "value": (Value(0.3, 0.1), plain_value),
    **{name: (Policy(s), plain_policy(s)) for name, s in POLICIES.items()},
}


def parts(values: Tensor, samples: Sequence[Sample]) -> list[Tensor]:
    return list(values.split([sum(sample.wrote) for sample in samples]))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(lambda x: len(x) % 2 == 0),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_are_those_of_a_plain_loop(name: str, lengths: list[int], seed: int) -> None:
    objective, plain = CASES[name]
    samples = draw(lengths, seed)
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), generator=rng, dtype=torch.float64, requires_grad=True)
    expected = plain(parts(values, samples), samples)
    want = torch.autograd.grad(expected, values, allow_unused=True)[0] if sum(lengths) else None
    told_before = None
    for layout in LAYOUTS.values():
        batches = layout(samples)
        loss, told = evaluate(objective, batches, places(layout, samples), values)
        torch.testing.assert_close(loss, torch.as_tensor(expected, dtype=torch.float64))
        if sum(lengths):
            (got,) = torch.autograd.grad(loss, values)
            torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want)
        if told_before is not None:
            assert told == pytest.approx(told_before)
        told_before = told


def test_normalised_dpo_does_not_count_tokens_and_plain_dpo_does() -> None:
    """A response's tokens twice, with equal log-probabilities (card tulu3)."""
    rng = np.random.default_rng(0)
    known = [{"reference": rng.normal(size=4)} for _ in range(2)]
    values = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(objective: ScoreObjective, times: int) -> float:
        samples = [
            Sample(
                [1] + [2] * 4 * times,
                [False] + [True] * 4 * times,
                {"reference": np.tile(k["reference"], times)},
            )
            for k in known
        ]
        from shunter.post.batch import lay_out
        from shunter.post.objective import Scores, loss_of

        batch = lay_out(samples)
        scores = torch.zeros(batch.targets.shape, dtype=torch.float64)
        for row in range(2):
            scores[row, : 4 * times] = values[4 * row : 4 * row + 4].repeat(times)
        return float(loss_of(objective.terms(Scores(scores), batch, objective.weights(batch))))

    assert loss(DPO(5.0, normalised=True), 1) == pytest.approx(loss(DPO(5.0, normalised=True), 2))
    assert loss(DPO(0.1), 1) != pytest.approx(loss(DPO(0.1), 2))


def test_the_clip_stops_the_gradient_on_its_side_only() -> None:
    samples = [Sample([1, 2], [False, True], {"old": [0.0], "advantage": [a]}) for a in (1.0, -1.0)]
    from shunter.post.batch import lay_out
    from shunter.post.objective import coefficients

    objective = Policy(PolicySettings(average="token"))
    batch = lay_out(samples)
    for change, expected in ((0.5, [0.0, 0.5 * math.exp(0.5)]), (-0.5, [-0.5 * math.exp(-0.5), 0.0])):
        logprob = torch.where(torch.from_numpy(batch.targets != -100), change, 0.0).double()
        found = coefficients(objective, logprob, batch, objective.weights(batch))
        assert found[:, 0].tolist() == pytest.approx(expected)
        assert float(found[:, 1:].abs().max()) == 0


def test_k1_is_refused_in_the_loss() -> None:
    with pytest.raises(ValueError, match="belongs in the reward"):
        PolicySettings(kl=0.1, estimator="k1")


def test_estimators_agree_in_the_mean() -> None:
    """k1 and k3 on 200,000 draws are the divergence within four standard errors, k2 near it."""
    rng = torch.Generator().manual_seed(0)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    policy = torch.tensor([0.45, 0.25, 0.3], dtype=torch.float64)
    exact = float((policy * (policy / reference).log()).sum())
    tokens = torch.multinomial(policy, 200_000, replacement=True, generator=rng)
    a, b = policy.log()[tokens], reference.log()[tokens]
    for estimator in ("k1", "k3"):
        each = divergence(a, b, estimator)
        assert abs(float(each.mean()) - exact) < 4 * float(each.std()) / math.sqrt(len(each))
    assert float(divergence(a, b, "k2").mean()) == pytest.approx(exact, rel=0.05)
    assert float(divergence(a, b, "k3").min()) >= 0


def test_rloo_is_reinforce_on_whole_answers() -> None:
    """Where the policy is the one that wrote: the mean over answers of advantage x gradient of log pi(y),
    whatever their lengths. With a mean over tokens a long answer would count less a token."""
    from shunter.post.config import PolicyConfig
    from shunter.post.judged import settings as of

    lengths, advantages = (2, 7, 4), (1.0, -0.5, 0.25)
    drawn = np.random.default_rng(0)
    samples = [
        Sample([0] * (n + 1), [False] + [True] * n, {"old": drawn.normal(size=n), "advantage": np.full(n, a)})
        for n, a in zip(lengths, advantages, strict=True)
    ]
    batch = lay_out(samples)
    objective = Policy(of(PolicyConfig(algorithm="rloo"), 16))
    logprob = torch.from_numpy(batch.known["old"].copy()).requires_grad_()
    loss_of(objective.terms(Scores(logprob), batch, objective.weights(batch))).backward()
    assert logprob.grad is not None
    for row, (length, advantage) in enumerate(zip(lengths, advantages, strict=True)):
        answer = batch.targets[row] != IGNORE
        assert answer.sum() == length
        np.testing.assert_allclose(
            logprob.grad[row][torch.from_numpy(answer)], np.full(length, -advantage / 3)
        )
