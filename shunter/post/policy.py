"""Policy gradients with a ratio to the policy that wrote, clipped; and the value model's loss.

With r = pi(token) / pi_old(token), A the advantage, and y a sequence of |y| tokens:
PPO         -min(r A, clip(r, 1 - e, 1 + e) A), mean over tokens (arXiv 1707.06347, equation 7)
GRPO        the same, mean over a sequence's tokens, then over sequences, plus beta x k3 against the reference
            (arXiv 2402.03300, equation 3)
DAPO        clip(r, 1 - e_low, 1 + e_high), mean over all tokens of the batch (arXiv 2503.14476, equation 8)
Dr. GRPO    sum over tokens, divided by sequences times a constant length (arXiv 2503.20783, section 3)
RLOO        A against the other samples' mean reward, r = pi(y) / pi_old(y): a sequence is one action, and
            the first gradient the mean over sequences of A x grad log pi(y) (arXiv 2402.14740)
REINFORCE++ A of token rewards with KL inside, whitened over the batch (arXiv 2501.03262)
GSPO        r = (pi(y) / pi_old(y)) ^ (1 / |y|), one for all tokens of y (arXiv 2507.18071, equation 7)
value       max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, mean over tokens (arXiv 1707.06347's
            code; arXiv 2411.15124)
The ratio is exact where `old` comes from the policy that wrote the tokens, at the same temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.post.batch import Answers, Sequences
from shunter.post.divergence import Estimator, divergence
from shunter.post.objective import Scores
from shunter.train.objective import Counts, Scope

Average = Literal["sequence", "token", "constant"]


@dataclass(frozen=True)
class PolicySettings:
    """What distinguishes the algorithms.

    clip_low, clip_high: how far below and above 1 the ratio counts.
    ratio:    of each token, or one for a sequence: the geometric mean of its tokens', or their product (sum).
    average:  over a sequence's tokens and then over sequences; over all tokens; or the sum over tokens
              divided by sequences times `length`.
    kl:       weight of the divergence from the reference, in the loss, by `estimator`.
    entropy:  weight of the entropy, which is rewarded.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: Literal["token", "sequence", "sum"] = "token"
    average: Average = "sequence"
    length: int = 1
    kl: float = 0.0
    estimator: Estimator = "k3"
    entropy: float = 0.0

    def __post_init__(self) -> None:
        if self.kl and self.estimator == "k1":
            raise ValueError("k1 has no gradient in the mean: it belongs in the reward")

    @property
    def by_sequences(self) -> bool:
        """Whether the loss is known up to the number of sequences: not where tokens of the batch count."""
        return self.average != "token" and not self.entropy


class Policy:
    """The clipped policy gradient. Needs `old` and `advantage` of each target, and `reference` with kl.

    `told` compares the policy with `old` before anything was learnt from the batch: there the two are the
    same policy, computed by trainer and generator, so what differs (`gap`) is a mistake or rounding.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings
        self.needs = frozenset({"logprob", "entropy"} if settings.entropy else {"logprob"})
        whole = settings.ratio != "token" or settings.average == "sequence"
        self.scope: Scope = "sequence" if whole else "token"

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"token": float(batch.num_valid), "sequence": float(Sequences(batch).count)}

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        s = self.settings
        assert scores.logprob is not None
        seen = Sequences(batch, scores.logprob.device)
        ratio, advantage = self._ratio(scores.logprob, seen), seen.known("advantage")
        clipped = ratio.clamp(1 - s.clip_low, 1 + s.clip_high)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        found = {"policy": -self._averaged(gain, seen, counts)}
        if s.kl:
            apart = divergence(scores.logprob, seen.known("reference"), s.estimator)
            found["kl"] = s.kl * self._averaged(apart, seen, counts)
        if s.entropy:
            assert scores.entropy is not None
            tokens = max(counts["token"], 1.0)
            found["entropy"] = -s.entropy * seen.total(scores.entropy) / tokens
        return found

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        s = self.settings
        assert scores.logprob is not None
        seen = Sequences(batch, scores.logprob.device)
        tokens = max(counts["token"], 1.0)
        ratio, advantage = self._ratio(scores.logprob, seen), seen.known("advantage")
        over = (ratio > 1 + s.clip_high) & (advantage > 0)
        under = (ratio < 1 - s.clip_low) & (advantage < 0)
        gap = torch.where(seen.valid, (scores.logprob - seen.known("old")).abs(), 0.0)
        found = {
            "clipped": seen.total((over | under).double()) / tokens,
            "gap": gap.sum() / tokens,
            "max/gap": gap.amax(),
        }
        assert isinstance(batch, Answers)
        if "reference" in batch.known:
            apart = divergence(scores.logprob, seen.known("reference"), "k3")
            found["kl"] = seen.total(apart) / tokens
        if scores.entropy is not None:
            found["entropy"] = seen.total(scores.entropy) / tokens
        return found

    def _ratio(self, logprob: Tensor, seen: Sequences) -> Tensor:
        """[B, T]. Masked before the exponential: the gradient of what is masked after it may be 0 x inf."""
        change = torch.where(seen.valid, logprob - seen.known("old"), 0.0)
        if self.settings.ratio == "sequence":
            change = seen.spread(seen.means(change))
        elif self.settings.ratio == "sum":
            change = seen.spread(seen.sums(change))
        return change.exp()

    def _averaged(self, values: Tensor, seen: Sequences, counts: Counts) -> Tensor:
        sequences = max(counts["sequence"], 1.0)
        if self.settings.average == "sequence":
            return seen.means(values).sum() / sequences
        if self.settings.average == "token":
            return seen.total(values) / max(counts["token"], 1.0)
        return seen.total(values) / (sequences * self.settings.length)


class Value:
    """The value model's loss. Needs `value` (its own before) and `return` of each target."""

    needs = frozenset({"value"})
    scope: Scope = "token"

    def __init__(self, clip: float = 0.2, weight: float = 1.0) -> None:
        """clip: how far a value may move from `value` to count."""
        self.clip, self.weight = clip, weight

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"token": float(batch.num_valid)}

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        assert scores.value is not None
        seen = Sequences(batch, scores.value.device)
        before, aim = seen.known("value"), seen.known("return")
        moved = before + (scores.value - before).clamp(-self.clip, self.clip)
        worse = torch.maximum((scores.value - aim).square(), (moved - aim).square())
        return {"value": self.weight * 0.5 * seen.total(worse) / max(counts["token"], 1.0)}

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        assert scores.value is not None
        seen = Sequences(batch, scores.value.device)
        off = (scores.value - seen.known("return")).square()
        return {"value_error": seen.total(off) / max(counts["token"], 1.0)}
