"""One update by several ranks that hold the same weights and different answers.

With `exact` the update is the same bits for any number of ranks. Two things see to it. What is computed
together is a run of answers (`Rows.unit`), never more: kernels round by the shape of what they are given. And
sums over runs do not depend on their order: gradients are added up as integers, numbers by `math.fsum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.models.moe import begin_step
from shunter.parallel.mesh import Peers
from shunter.parallel.told import told_by_all
from shunter.post.objective import ScoreObjective, loss_of
from shunter.post.step import ScoredResult, Scorer, update
from shunter.record.points import reach
from shunter.train.optim import Optimizers

BITS = 52  # of a gradient behind the binary point: 2e-16 is the smallest that counts
ROOM = 62  # bits of a sum before it


def shared_step(
    scorer: Scorer,
    optimizers: Optimizers,
    objective: ScoreObjective,
    batches: Sequence[Batch],
    peers: Peers,
    *,
    exact: bool,
    step: int,
    rate: float,
    clip: float,
    finish: Callable[[float], float] | None = None,
    guard: Callable[[Mapping[str, float]], None] | None = None,
) -> ScoredResult:
    """As `scored_step`, but the batches of all peers are one global batch. All peers call it, those without a
    batch too.

    guard: sees what the objective tells before anything is changed, and may raise. finish: adds gradients up
    and scales them down, where that is not what the peers do alone; takes the limit and returns the norm."""
    directive = reach("train.step", step=step)
    mine: dict[str, float] = {"tokens": float(sum(int((batch.segments >= 0).sum()) for batch in batches))}
    mine["batches"] = float(len(batches))
    for batch in batches:
        for name, number in objective.weights(batch).items():
            mine[f"of {name}"] = mine.get(f"of {name}", 0.0) + number
    counts = _added(told_by_all([mine], peers, scorer.device))  # whole numbers: no order rounds them
    begin_step(scorer.decoder, int(counts["tokens"]))
    of = {name.removeprefix("of "): value for name, value in counts.items()}
    parameters = [p for module in _modules(scorer) for p in module.parameters() if p.requires_grad]
    sums = WholeSums(parameters) if exact else None
    seen: list[dict[str, float]] = []
    for batch in batches:
        scores = scorer(batch, objective.needs)
        parts = objective.terms(scores, batch, of)
        loss = loss_of(parts)
        if loss.requires_grad:  # a batch in which no token is learnt from has none
            loss.backward()
        if sums is not None:
            sums.take()
        with torch.no_grad():
            shown = objective.told(scores, batch, of)
        seen.append(
            {f"term {name}": float(value.detach()) for name, value in parts.items()}
            | {name: float(value) for name, value in shown.items()}
        )
    together = _added(told_by_all(seen, peers, scorer.device))
    terms = {
        name.removeprefix("term "): value for name, value in together.items() if name.startswith("term ")
    }
    told = {name: value for name, value in together.items() if not name.startswith("term ")}
    if guard is not None:
        guard(told)
    total = math.nan if directive == "nan" else math.fsum(terms.values())
    if finish is not None:
        norm = finish(clip)
    else:
        if sums is not None:
            sums.finish(peers, int(counts["batches"]))
        else:
            add_up(parameters, peers)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
    return update(optimizers, total, terms, told, norm, step=step, rate=rate)


class WholeSums:
    """Gradients of batches added up as multiples of 2^-52, which no order rounds otherwise."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.sums = [torch.zeros(p.shape, dtype=torch.int64, device=p.device) for p in parameters]
        self.largest = 0.0  # of a gradient's elements; not finite where one is not

    @torch.no_grad()
    def take(self) -> None:
        """Add `.grad`, and take it away."""
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            if parameter.grad is None:
                continue
            grad = parameter.grad.double()
            largest = float(grad.abs().amax()) if grad.numel() else 0.0
            if not math.isfinite(largest) or not math.isfinite(self.largest):
                self.largest = math.inf
            else:
                self.largest = max(self.largest, largest)
                if largest < 2.0 ** (ROOM - BITS):
                    total += (grad * 2.0**BITS).round_().long()
            parameter.grad = None

    @torch.no_grad()
    def finish(self, peers: Peers, batches: int) -> None:
        """The sum over all batches of all peers as `.grad`; not a number where it has no room."""
        largest = max(told_by_all(self.largest, peers, self.sums[0].device))
        fits = largest * max(1, batches) < 2.0 ** (ROOM - BITS)
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            if peers.size > 1:
                dist.all_reduce(total, group=peers.group)
            grad = (total.double() / 2.0**BITS).to(parameter.dtype)
            parameter.grad = grad if fits else torch.full_like(grad, math.nan)


@torch.no_grad()
def add_up(parameters: Sequence[Tensor], peers: Peers) -> None:
    """Make each `.grad` the sum over the peers."""
    if peers.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat, group=peers.group)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)


def _added(each: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Sums by name over all batches of all ranks, rounded once; the largest where a name says so."""
    values: dict[str, list[float]] = {}
    for rank in each:
        for batch in rank:
            for name, value in batch.items():
                values.setdefault(name, []).append(value)
    return {name: max(all_) if "max/" in name else _sum(all_) for name, all_ in values.items()}


def _sum(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def _modules(scorer: Scorer) -> list[torch.nn.Module]:
    return [scorer.decoder] if scorer.value is None else [scorer.decoder, scorer.value]
