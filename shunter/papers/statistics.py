"""Whether a claim holds, from paired samples over seeds. Nothing here knows a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shunter.config.errors import ShunterError

Rule = Literal["equal", "beyond-band", "ratio-at-least", "ratio-at-most", "less", "greater"]
MIN_SEEDS = 3

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond 10 the error is under 4 %
# and on the safe side.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


@dataclass(frozen=True)
class Verdict:
    """`interval` is the 95 % interval of what the rule compares (paired difference or ratio)."""

    holds: bool
    baseline: float  # mean over seeds
    ours: float  # mean over seeds
    ratio: float  # ours / baseline of the means; nan when the baseline is 0
    interval: tuple[float, float]
    reason: str


def t_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent samples (Student's t)."""
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2:
        return (-math.inf, math.inf)
    half = _T95.get(len(values) - 1, 2.228) * values.std(ddof=1) / math.sqrt(len(values))
    return (float(values.mean() - half), float(values.mean() + half))


def judge(rule: Rule, baseline: Sequence[float], ours: Sequence[float], *, threshold: float = 0.0) -> Verdict:
    """Apply `rule` to samples that are paired by seed, in the same order.

    equal:          every pair is equal exactly.
    beyond-band:    every pair differs by more than `threshold` times the standard deviation of the
                    baseline over seeds (the seed band).
    ratio-at-least: the interval of ours / baseline lies at or above `threshold`; ratio-at-most likewise.
    less, greater:  the interval of ours - baseline lies below, above `threshold`.
    """
    if len(baseline) != len(ours) or len(ours) < MIN_SEEDS:
        raise ShunterError(
            f"a claim needs at least {MIN_SEEDS} seeds with both arms, got {len(baseline)} and {len(ours)}",
            mend="Give more with --seeds, such as --seeds 0,1,2.",
        )
    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(ours, dtype=np.float64)
    difference = b - a
    low, high = t_interval(difference.tolist())
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    if rule == "equal":
        holds = finite and bool((difference == 0).all())
        reason = f"largest difference {np.abs(difference).max():.3g}, must be 0"
    elif rule == "beyond-band":
        band = threshold * float(a.std(ddof=1))
        holds = finite and bool((np.abs(difference) > band).all())
        reason = f"smallest deviation {np.abs(difference).min():.3g} against a seed band of {band:.3g}"
    elif rule in ("ratio-at-least", "ratio-at-most"):
        if not (a > 0).all():
            raise ShunterError("a ratio needs a positive baseline in every seed")
        low, high = t_interval((b / a).tolist())
        holds = finite and (low >= threshold if rule == "ratio-at-least" else high <= threshold)
        reason = f"95 % interval of the ratio {low:.3g} to {high:.3g}, threshold {threshold:g}"
    else:
        holds = finite and (high < threshold if rule == "less" else low > threshold)
        reason = f"95 % interval of the difference {low:.3g} to {high:.3g}, threshold {threshold:g}"
    with np.errstate(over="ignore"):  # a baseline next to 0: infinity is the truth
        ratio = float(b.mean() / a.mean()) if a.mean() != 0 else math.nan
    return Verdict(holds, float(a.mean()), float(b.mean()), ratio, (low, high), reason)
