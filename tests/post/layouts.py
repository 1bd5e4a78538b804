"""The same samples laid out in several ways, with scores that are drawn per token and not computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shunter.data.tokens import IGNORE
from shunter.post.batch import Answers, Sample, lay_out
from shunter.post.objective import ScoreObjective, Scores, loss_of

NAMES = ("old", "reference", "advantage", "value", "return")


def draw(lengths: Sequence[int], seed: int) -> list[Sample]:
    """One sample for each number of learnt tokens (0 is allowed), after prompts of 1 to 4 tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        prompt = int(rng.integers(1, 5))
        ids = rng.integers(1, 50, prompt + length).tolist()
        known = {name: rng.normal(size=length) for name in NAMES}
        found.append(Sample(ids, [False] * prompt + [True] * length, known))
    return found


def packed(samples: Sequence[Sample]) -> Answers:
    """All in one row, one segment after the other."""
    parts = [lay_out([sample], width=max(1, len(sample.ids) - 1)) for sample in samples]
    joined = [np.concatenate([getattr(p, n) for p in parts], axis=1) for n in ("tokens", "targets")]
    segments = np.concatenate([np.full(p.segments.shape, i, dtype=np.int32) for i, p in enumerate(parts)], 1)
    positions = np.concatenate([p.positions for p in parts], axis=1)
    known = {name: np.concatenate([p.known[name] for p in parts], axis=1) for name in NAMES}
    return Answers(joined[0], joined[1], segments, positions, np.zeros(1, dtype=np.int64), known)


Layout = Callable[[Sequence[Sample]], list[Answers]]

# Units of two samples stay together: pairs, and what any other objective does not mind.
LAYOUTS: dict[str, Layout] = {
    "one batch": lambda s: [lay_out(s)],
    "padded more": lambda s: [lay_out(s, pad=7, width=64)],
    "two at a time": lambda s: [lay_out(s[i : i + 2]) for i in range(0, len(s), 2)],
    "backwards": lambda s: [lay_out(s[i : i + 2]) for i in range(len(s) - 2, -1, -2)],
    "packed": lambda s: [packed(s)],
    "packed by two": lambda s: [packed(s[i : i + 2]) for i in range(0, len(s), 2)],
}


def numbered(samples: Sequence[Sample]) -> list[Sample]:
    """The same with a further number, `place`: of each learnt token among those of all samples, from 1."""
    found, at = [], 1
    for sample in samples:
        count = sum(sample.wrote)
        found.append(Sample(sample.ids, sample.wrote, {**sample.known, "place": np.arange(at, at + count)}))
        at += count
    return found


def evaluate(
    objective: ScoreObjective, batches: Sequence[Answers], places: Sequence[np.ndarray], values: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Loss of all batches together, and what is told; values [N]: the score of each learnt token in turn."""
    counts: dict[str, float] = {}
    for batch in batches:
        for name, number in objective.weights(batch).items():
            counts[name] = counts.get(name, 0.0) + number
    loss, told = torch.zeros((), dtype=torch.float64), {}
    for batch, place in zip(batches, places, strict=True):
        # Where there is no target stands what must not be looked at.
        spread = torch.cat([torch.full((1,), 1e3, dtype=values.dtype), values])[torch.from_numpy(place)]
        scores = Scores(logprob=spread, entropy=spread.square(), value=spread)
        seen = Scores(*(spread.detach() for spread in (spread, spread.square(), spread)))
        loss = loss + loss_of(objective.terms(scores, batch, counts))
        for name, value in objective.told(seen, batch, counts).items():
            old = told.get(name, 0.0)
            told[name] = max(old, float(value)) if name.startswith("max/") else old + float(value)
    return loss, told


def places(layout: Layout, samples: Sequence[Sample]) -> list[np.ndarray]:
    """[B, T] of each batch: which of all learnt tokens stands there, 0 where none does."""
    counted = numbered(samples)
    found = []
    for batch in layout([Sample(s.ids, s.wrote, {**s.known, "old": s.known["place"]}) for s in counted]):
        place = batch.known["old"].astype(np.int64)
        assert ((place > 0) == (batch.targets != IGNORE)).all()
        found.append(place)
    return found
