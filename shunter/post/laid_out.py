"""Objectives of scores under a layout: the model's parts on several ranks, the loss that of one process.

The last stage's ranks score the positions that they have; where rows are spread, scores (a number a token)
are brought together, so that each rank computes the objective on whole sequences, and takes the derivative by
each of its own scores. What goes back through the model is sum of derivative x score: one pass, as without a
layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shunter.data.tokens import IGNORE, Batch
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece, balanced
from shunter.models.scores import linear_scores
from shunter.parallel.decoder import DecoderStage, Rows
from shunter.parallel.tensor import whole_tokens
from shunter.parallel.told import told_by_all
from shunter.post.batch import Answers
from shunter.post.objective import ScoreObjective, Scores, loss_of
from shunter.post.step import ScoredResult, Scorer, gather, update
from shunter.record.points import reach
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses

KINDS = ("logprob", "entropy", "value")
VALUE = "value."  # before the names of a value head's parameters


class LaidOutScorer(Scorer):
    """What `Scorer` is for a model in one process: says of batches what the model thinks of them.

    Called without gradients, by all ranks, with the same whole batches; all get the scores of all rows.
    """

    def __init__(
        self,
        passes: LaidOutPasses,
        *,
        value: nn.Linear | None = None,
        temperature: float = 1.0,
        width: int | None = None,
        multiple: int = 1,
    ) -> None:
        """value: a head that learns too; here it becomes a part of what the last stage's ranks hold.
        width: of all rows, where they are spread; multiple: else rows are filled up to one of it."""
        super().__init__(
            passes.decoder, passes.device, passes.precision, value=value, temperature=temperature
        )
        self.passes, self.width, self.multiple = passes, width, multiple
        mesh, last = passes.world.mesh, passes.order.placement[-1]
        self.is_last = passes.world.stage == last
        # Of ranks that have the same scores, one counts.
        self.counts = self.is_last and mesh.place["cp"] == 0 and mesh.place["tp"] == 0
        if value is not None:
            value.to(self.device)
            self._hold(value)

    def _hold(self, value: nn.Linear) -> None:
        """Each rank of the last stage has all of it, and the gradient of its own tokens."""
        part = self.passes.part
        if part.shared is not None:
            raise ValueError("ranks that share the optimizer's state have no value head")
        if self.is_last:
            for name, parameter in value.named_parameters():
                part.weights[VALUE + name] = parameter
                part.held[VALUE + name] = Holding(Piece.full(parameter.shape), ("dp", "fsdp", "cp", "tp"))

    def fitted(self, batch: Batch) -> Batch:
        """The same batch with rows as wide as the layout needs them."""
        has = batch.tokens.shape[1]
        wants = self.width or -(-has // self.multiple) * self.multiple
        if has > wants:
            raise ValueError(f"rows of {has} tokens, the layout was made for {wants}")
        return _columns(batch, wants)

    @torch.no_grad()
    def __call__(self, batch: Batch, needs: frozenset[str]) -> Scores:
        world, has = self.passes.world, batch.targets.shape[1]
        data, count = world.data, len(batch.targets)
        begin, end = balanced(count, data.size, data.index)
        # Every rank passes some row, where there are fewer than ranks.
        mine = self.fitted(_rows(batch, slice(begin, end) if begin < end else slice(0, 1)))
        judge = Judge(self, mine, needs)
        self.passes.with_heads([mine], [judge], train=False)
        found: dict[str, Tensor] = {}
        for name in (kind for kind in KINDS if kind in needs):
            whole = torch.zeros(count, has, dtype=torch.float64, device=self.device)
            if self.counts and begin < end:
                whole[begin:end] = judge.found[name][:, :has]
            found[name] = world.sum(whole)
        return Scores(**found)


class Judge:
    """A micro-batch's head: scores, and with an objective the derivative of its loss.

    found: [B, T] of whole rows by kind, detached. terms, told: as the objective names them.
    """

    def __init__(
        self,
        scorer: LaidOutScorer,
        batch: Batch,
        needs: frozenset[str],
        objective: ScoreObjective | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> None:
        self.scorer, self.batch, self.needs = scorer, batch, needs
        self.objective, self.totals = objective, counts or {}
        self.found: dict[str, Tensor] = {}
        self.terms: dict[str, float] = {}
        self.told: dict[str, float] = {}

    def __call__(self, stage: DecoderStage, x: Tensor, rows: Rows) -> Tensor:
        """x [B, t, D]. Returns sum of derivative x score of the positions that are here; 0 without an
        objective, or without gradients."""
        flat = whole_tokens(stage.tokens, x).flatten(0, 1)
        local = self._scores(stage, flat, rows)
        self.found = {name: self._whole(scores.detach()) for name, scores in local.items()}
        if self.objective is None or not torch.is_grad_enabled():
            return torch.zeros((), dtype=torch.float64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            factors = self._derivatives()
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for name, scores in local.items():
            part = (factors[name].double() * scores.double()).sum()
            if name == "value" and stage.tokens is not None:  # tensor ranks all have it, and are added up
                part = part / stage.tokens.peers.size
            total = total + part
        return total

    def _scores(self, stage: DecoderStage, flat: Tensor, rows: Rows) -> dict[str, Tensor]:
        """[B, t] of the positions that are here, with gradients."""
        assert stage.head is not None
        targets, found = rows.targets.flatten(), dict[str, Tensor]()
        valid = targets != IGNORE
        if {"logprob", "entropy"} & self.needs:
            active = valid.nonzero().flatten()
            picked, spread = linear_scores(
                flat[active],
                stage.head.weight,
                targets[active],
                temperature=self.scorer.temperature,
                entropies="entropy" in self.needs,
                others=stage.others,
            )
            empty = torch.zeros(targets.shape, dtype=picked.dtype, device=flat.device)
            found["logprob"] = empty.index_put((active,), picked).view_as(rows.targets)
            if "entropy" in self.needs:
                found["entropy"] = empty.index_put((active,), spread).view_as(rows.targets)
        if "value" in self.needs:
            head = self.scorer.value
            assert head is not None, "the objective needs a value head"
            with torch.autocast(flat.device.type, enabled=False):
                found["value"] = head(flat.to(head.weight.dtype)).view_as(rows.targets)
        return found

    def _whole(self, scores: Tensor) -> Tensor:
        """[B, T] of whole rows, from the positions [B, t] that this rank has."""
        passes = self.scorer.passes
        if passes.spread is None:
            return scores
        whole = scores.new_zeros(self.batch.targets.shape)
        whole[:, passes.spread] = scores
        return passes.world.sum(whole, passes.world.mesh.peers("cp"))

    def _derivatives(self) -> dict[str, Tensor]:
        """[B, t] by kind: of the loss by each score that is here."""
        assert self.objective is not None
        leaves = {name: scores.clone().requires_grad_() for name, scores in self.found.items()}
        parts = self.objective.terms(Scores(**leaves), self.batch, self.totals)
        loss = loss_of(parts)
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            seen = self.objective.told(Scores(**self.found), self.batch, self.totals)
        self.terms = {name: float(part.detach()) for name, part in parts.items()}
        self.told = {name: float(part) for name, part in seen.items()}
        spread = self.scorer.passes.spread
        found = {}
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            whole = torch.zeros_like(leaf) if grad is None else grad
            found[name] = whole if spread is None else whole[:, spread]
        return found


def laid_out_step(
    scorer: LaidOutScorer,
    optimizers: Optimizers,
    objective: ScoreObjective,
    batches: Sequence[Batch],
    *,
    step: int,
    rate: float,
    clip: float,
    guard: Callable[[Mapping[str, float]], None] | None = None,
) -> ScoredResult:
    """As `scored_step`, by all ranks; batches: this rank's micro-batches, as many as the layout has."""
    directive = reach("train.step", step=step)
    passes, mesh = scorer.passes, scorer.passes.world.mesh
    batches = [scorer.fitted(batch) for batch in batches]
    mine: dict[str, float] = {}
    for batch in batches:
        gather(mine, objective.weights(batch))
    counts = dict(zip(mine, passes.total(list(mine.values())), strict=True))
    judges = [Judge(scorer, batch, objective.needs, objective, counts) for batch in batches]
    passes.with_heads(batches, judges, train=True)
    if not {"logprob", "entropy"} & objective.needs and not scorer.decoder.spec.tied:
        head = passes.parameters.get("head.weight")
        if head is not None:  # unused; with a gradient of zeros it would decay
            head.grad = None
    terms: dict[str, float] = {}
    told: dict[str, float] = {}
    facts = [[judge.terms, judge.told] for judge in judges] if scorer.counts else []
    for of_rank in told_by_all(facts, mesh.everyone, scorer.device):
        for its_terms, its_told in of_rank:
            gather(terms, its_terms)
            gather(told, its_told)
    if guard is not None:
        guard(told)
    total = math.nan if directive == "nan" else sum(terms.values())
    norm = float(passes.clip(clip))
    return update(optimizers, total, terms, told, norm, step=step, rate=rate)


def _rows(batch: Batch, rows: slice) -> Batch:
    """Some rows of it."""
    names = ("tokens", "targets", "segments", "positions", "row_ids")
    of: dict[str, Any] = {name: getattr(batch, name)[rows] for name in names}
    if isinstance(batch, Answers):
        return replace(batch, **of, known={name: values[rows] for name, values in batch.known.items()})
    return replace(batch, **of)


def _columns(batch: Batch, width: int) -> Batch:
    """The same rows, filled up to `width`."""
    more = ((0, 0), (0, width - batch.tokens.shape[1]))
    if not more[1][1]:
        return batch
    fills = {"tokens": 0, "targets": IGNORE, "segments": -1, "positions": 0}
    of: dict[str, Any] = {
        name: np.pad(getattr(batch, name), more, constant_values=fill) for name, fill in fills.items()
    }
    if isinstance(batch, Answers):
        known = {name: np.pad(values, more) for name, values in batch.known.items()}
        return replace(batch, **of, known=known)
    return replace(batch, **of)
