"""Losses on pairs of answers to one prompt, the better one first.

In all of them s is a sequence's score and sigma the logistic function.
DPO             -log sigma(beta [(s_c - s_c^ref) - (s_r - s_r^ref)]), s the sum of log-probabilities
                (arXiv 2305.18290, equation 7)
normalised DPO  the same with their mean (arXiv 2411.15124, section 5.1.2)
smoothing       -(1 - e) log sigma(x) - e log sigma(-x) (arXiv 2305.18290, appendix; cDPO)
SimPO           -log sigma(beta (mean_c - mean_r) - gamma), no reference (arXiv 2405.14734, equation 6)
Bradley-Terry   -log sigma(r_c - r_r), r the value at the last token (arXiv 2203.02155, equation 1)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.post.batch import Sequences
from shunter.post.objective import Scores
from shunter.train.objective import Counts, Scope


class _Pairs:
    scope: Scope = "pair"

    def weights(self, batch: Batch) -> dict[str, float]:
        count = Sequences(batch).count
        if count % 2:
            raise ValueError("a batch of pairs has an even number of sequences")
        return {"pair": count / 2}


class DPO(_Pairs):
    """Direct preference optimisation. Needs `reference` of each target."""

    needs = frozenset({"logprob"})

    def __init__(self, beta: float = 0.1, *, normalised: bool = False, smoothing: float = 0.0) -> None:
        """normalised: by means of log-probabilities, with a beta of about 5 then. smoothing: in [0, 0.5)."""
        self.beta, self.normalised, self.smoothing = beta, normalised, smoothing

    def _rewards(self, scores: Scores, batch: Batch) -> Tensor:
        """[count]: how much likelier than under the reference, times beta."""
        assert scores.logprob is not None
        seen = Sequences(batch, scores.logprob.device)
        gain = scores.logprob - seen.known("reference")
        return self.beta * (seen.means(gain) if self.normalised else seen.sums(gain))

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        rewards = self._rewards(scores, batch)
        x = rewards[0::2] - rewards[1::2]
        loss = -(1 - self.smoothing) * F.logsigmoid(x)
        if self.smoothing:
            loss = loss - self.smoothing * F.logsigmoid(-x)
        return {"preference": loss.sum() / max(counts["pair"], 1.0)}

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        rewards, pairs = self._rewards(scores, batch), max(counts["pair"], 1.0)
        chosen, rejected = rewards[0::2], rewards[1::2]
        return {
            "accuracy": (chosen > rejected).double().sum() / pairs,
            "margin": (chosen - rejected).sum() / pairs,
            "chosen": chosen.sum() / pairs,
            "rejected": rejected.sum() / pairs,
        }


class SimPO(_Pairs):
    """Preference by mean log-probability, with a margin, without a reference."""

    needs = frozenset({"logprob"})

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        """gamma: the margin, on the scale of beta times a mean log-probability."""
        self.beta, self.gamma = beta, gamma

    def _difference(self, scores: Scores, batch: Batch) -> Tensor:
        assert scores.logprob is not None
        means = Sequences(batch, scores.logprob.device).means(scores.logprob)
        return self.beta * (means[0::2] - means[1::2])

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        loss = -F.logsigmoid(self._difference(scores, batch) - self.gamma)
        return {"preference": loss.sum() / max(counts["pair"], 1.0)}

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        x, pairs = self._difference(scores, batch), max(counts["pair"], 1.0)
        return {"accuracy": (x > 0).double().sum() / pairs, "margin": x.sum() / pairs}


class BradleyTerry(_Pairs):
    """A reward model: the value at a sequence's last token is its reward."""

    needs = frozenset({"value"})

    def __init__(self, centre: float = 0.0) -> None:
        """centre: weight of (r_c + r_r)^2, which keeps rewards around zero (arXiv 2312.09244)."""
        self.centre = centre

    def rewards(self, scores: Scores, batch: Batch) -> Tensor:
        """[count]: the reward of each sequence."""
        assert scores.value is not None
        return scores.value.flatten()[Sequences(batch, scores.value.device).last]

    def terms(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        rewards, pairs = self.rewards(scores, batch), max(counts["pair"], 1.0)
        chosen, rejected = rewards[0::2], rewards[1::2]
        found = {"preference": -F.logsigmoid(chosen - rejected).sum() / pairs}
        if self.centre:
            found["centre"] = self.centre * (chosen + rejected).square().sum() / pairs
        return found

    def told(self, scores: Scores, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        rewards, pairs = self.rewards(scores, batch), max(counts["pair"], 1.0)
        chosen, rejected = rewards[0::2], rewards[1::2]
        return {
            "accuracy": (chosen > rejected).double().sum() / pairs,
            "margin": (chosen - rejected).sum() / pairs,
        }
