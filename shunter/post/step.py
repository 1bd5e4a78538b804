"""One optimizer step on an objective of scores, written out in order; and the scores themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shunter.data.tokens import IGNORE, Batch
from shunter.models.decoder import Decoder
from shunter.models.moe import begin_step
from shunter.models.scores import linear_scores
from shunter.models.segments import SegmentPlan
from shunter.post.batch import Answers
from shunter.post.objective import ScoreObjective, Scores, loss_of
from shunter.record.points import reach
from shunter.train.device import autocast
from shunter.train.optim import Optimizers


class Scorer:
    """A model in this process, and what it says of batches.

    value: a layer from hidden states [..., D] to one number, for objectives that need values.
    temperature: of the distribution whose log-probabilities and entropies are meant.
    """

    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        precision: str = "fp32",
        *,
        value: nn.Linear | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.decoder, self.device, self.precision = decoder, device, precision
        self.value, self.temperature = value, temperature
        self.between: Callable[[], object] = lambda: None  # called before each part of what is computed

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Scores:
        """Scores with gradients, unless inside no_grad."""
        tokens, positions, targets = (
            torch.from_numpy(array).to(self.device)
            for array in (batch.tokens, batch.positions, batch.targets)
        )
        segments = torch.from_numpy(batch.segments).to(self.device)
        plan = segment_plan(batch, segments)
        self.between()
        logprob = entropy = value = None
        with autocast(self.device, self.precision):
            hidden = self.decoder(tokens, positions, plan)
            if {"logprob", "entropy"} & needs:
                active = (targets != IGNORE).flatten().nonzero().flatten()
                flat = hidden.flatten(0, 1)
                wide = torch.promote_types(flat.dtype, torch.float32)
                picked, spread = linear_scores(
                    flat[active],
                    self.decoder.head_weight,
                    targets.flatten()[active],
                    temperature=self.temperature,
                    entropies="entropy" in needs,
                )
                empty = torch.zeros(targets.numel(), dtype=wide, device=self.device)
                logprob = empty.index_put((active,), picked).view_as(targets)
                if "entropy" in needs:
                    entropy = empty.index_put((active,), spread).view_as(targets)
        if "value" in needs:
            assert self.value is not None, "the objective needs a value head"
            value = self.value(hidden.to(self.value.weight.dtype)).squeeze(-1)
        return Scores(logprob, entropy, value)

    @torch.no_grad()
    def logprobs(self, batches: Sequence[Answers]) -> list[NDArray[np.float64]]:
        """[B, T] of each batch, without gradients."""
        found = []
        for batch in batches:
            scores = self(batch, frozenset({"logprob"}))
            assert scores.logprob is not None
            found.append(scores.logprob.double().cpu().numpy())
        return found


@dataclass(frozen=True)
class ScoredResult:
    """loss: of the step. terms, told: as the objective names them. grad_norm: before clipping."""

    loss: float
    terms: Mapping[str, float]
    told: Mapping[str, float]
    grad_norm: float
    updated: bool  # False: loss or gradient was not finite, and nothing was changed


def update(
    optimizers: Optimizers,
    total: float,
    terms: Mapping[str, float],
    told: Mapping[str, float],
    norm: float,
    *,
    step: int,
    rate: float,
) -> ScoredResult:
    """The end of every such step: with loss and gradient finite the weights move; gradients are dropped."""
    reach("train.update", step=step)
    updated = math.isfinite(total) and math.isfinite(norm)
    if updated:
        optimizers.step(rate)
    optimizers.zero_grad()
    return ScoredResult(total, terms, told, norm, updated)


class Gradient:
    """The gradient of a step's micro-batches, added up as they come, with what the objective says of them.

    counts: of the whole global batch. whole: all of it is added; else what is told is of what is.
    `early`: where it is begun before all of the batch is there.
    """

    def __init__(
        self, scorer: Scorer, objective: ScoreObjective, counts: Mapping[str, float], *, whole: bool = True
    ) -> None:
        self.scorer, self.objective, self.counts = scorer, objective, counts
        self.terms: dict[str, float] = {}
        self.told: dict[str, float] = {}
        # Targets so far, where the mean over them is taken in the end.
        self.tokens: int | None = None if whole else 0
        self._seen_of = counts if whole else {**counts, "token": 1.0}

    @classmethod
    def early(cls, scorer: Scorer, objective: ScoreObjective, sequences: int) -> Gradient:
        """Of so many sequences, for objectives whose terms are means over those: how many tokens they have
        is not known before."""
        return cls(scorer, objective, {"sequence": float(sequences), "token": 1.0}, whole=False)

    def add(self, batch: Batch) -> None:
        """Forward and backward of a micro-batch."""
        scores = self.scorer(batch, self.objective.needs)
        parts = self.objective.terms(scores, batch, self.counts)
        loss = loss_of(parts)
        self.scorer.between()
        if loss.requires_grad:  # a batch in which no token is learnt from has none
            loss.backward()
        with torch.no_grad():
            seen = self.objective.told(scores, batch, self._seen_of)
        gather(self.terms, {name: float(part.detach()) for name, part in parts.items()})
        gather(self.told, {name: float(part) for name, part in seen.items()})
        if self.tokens is not None:
            self.tokens += batch.num_valid

    def means(self) -> dict[str, float]:
        """What the objective has told of all of the batch."""
        count = 1 if self.tokens is None else max(1, self.tokens)
        return {n: value if n.startswith("max/") else value / count for n, value in self.told.items()}


def scored_step(
    scorer: Scorer,
    optimizers: Optimizers,
    objective: ScoreObjective,
    batches: Sequence[Batch],
    *,
    step: int,
    rate: float,
    clip: float,
    guard: Callable[[Mapping[str, float]], None] | None = None,
    begun: Gradient | None = None,
) -> ScoredResult:
    """Accumulate the gradient of the global batch over its micro-batches, then update once.

    guard: sees what was told before the update, and may raise. begun: the gradient of other micro-batches of
    this global batch, to which these are added. The result does not depend on how the batch was cut or
    padded, up to the rounding of sums.
    """
    directive = reach("train.step", step=step)
    if begun is None:
        counts: dict[str, float] = {}
        for batch in batches:
            for name, number in objective.weights(batch).items():
                counts[name] = counts.get(name, 0.0) + number
        begin_step(scorer.decoder, sum(int((batch.segments >= 0).sum()) for batch in batches))
        begun = Gradient(scorer, objective, counts)
    for batch in batches:
        begun.add(batch)
    scorer.between()
    terms, told = begun.terms, begun.means()
    if guard is not None:
        guard(told)
    total = math.nan if directive == "nan" else sum(terms.values())
    norm = float(torch.nn.utils.clip_grad_norm_(_trained(scorer), clip))
    return update(optimizers, total, terms, told, norm, step=step, rate=rate)


def segment_plan(batch: Batch, segments: Tensor) -> SegmentPlan:
    """Who sees whom in a batch; segments [B, T] on the device."""
    shared = isinstance(batch, Answers) and batch.shared
    return SegmentPlan.sharing(segments) if shared else SegmentPlan.build(segments)


def _trained(scorer: Scorer) -> list[Tensor]:
    modules: list[nn.Module] = [scorer.decoder]
    if scorer.value is not None:
        modules.append(scorer.value)
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def gather(into: dict[str, float], values: Mapping[str, float]) -> None:
    """Combine what another micro-batch says: sums, and of names that begin with `max/` the largest."""
    for name, value in values.items():
        if name.startswith("max/"):
            into[name] = max(into.get(name, -math.inf), value)
        else:
            into[name] = into.get(name, 0.0) + value
