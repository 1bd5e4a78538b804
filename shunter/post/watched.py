"""Whether trainer and generator are one policy, and whether learning still goes where it should.

What is told here, once each, ends no run: numbers far outside of a healthy training, for a person to look at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.post.batch import Sample

LASTING = 3  # steps in a row after which a low entropy is told; so many first and last rewards are compared
LOW = 0.05  # of the entropy at first: less is one answer to everything
# Of the way from there to the entropy of blind draws. One update at too high a rate makes it, and it does not
# last; where there are few words, or the first answers were sure, so does a policy that begins to try others.
HIGH = 0.5
BLIND = 0.9  # of the same way: no policy that still knows something
APART = 0.05  # of the first rewards' size, the least by which later ones are said to differ
# Nats a token in the mean, between the weights that wrote and those that learn. A clip of 0.2 ends at about
# as many nats: at five times that, most ratios are far outside, and say little of what answers are worth.
MOVED = 1.0
CLIPPED = 0.1  # share of tokens that are clipped before anything is learnt, where none should be


def finite(gap: float, where: str) -> None:
    """Raise ShunterError for a gap that is not a number."""
    if not math.isfinite(gap):
        raise ShunterError(
            "a log-probability of the generator or the trainer is not a number",
            where=where,
            mend="Lower train.lr, and go on from an earlier checkpoint.",
        )


def agree(gap: float, most: float, where: str) -> None:
    """Raise ShunterError where trainer and generator differ by more than `most`, nats a token."""
    finite(gap, where)
    if gap > most:
        raise ShunterError(
            f"trainer and generator differ by {gap:.2g} nats a token, more than {most:g}: they do not "
            "compute the same policy, so ratios mean nothing",
            where=where,
            mend="Set train.precision to fp32, or raise max_gap if it is bfloat16's rounding.",
        )


def surprise(samples: Sequence[Sample]) -> float:
    """How unlikely answers were, in nats a token, to the weights that wrote them and at their temperature: in
    the mean a policy's entropy. NaN without a token."""
    old = np.concatenate([np.asarray(sample.known["old"]) for sample in samples])
    return -float(old.mean()) if len(old) else math.nan


def ends(rewards: Sequence[float]) -> tuple[float, float, int]:
    """The mean of the first and of the last few steps' rewards, and whether these are more (1), less (-1), or
    the same for all that the noise of steps tells (0): by three times the error of the difference, since it
    is looked at after every step, and by `APART`."""
    given = np.asarray(rewards, dtype=np.float64)
    count = min(LASTING, len(given) // 2)
    if count < 2:
        return float(given[0]), float(given[-1]), 0
    begin, end = float(given[:count].mean()), float(given[-count:].mean())
    # Neighbours differ by noise and by what each step gains, but for one in which all may have changed.
    steps = np.diff(given)
    noise = steps[np.argsort(np.abs(steps))][:-1].var(ddof=1) / 2
    apart = abs(end - begin) > max(3 * math.sqrt(noise * 2 / count), APART * abs(begin))
    return begin, end, int(np.sign(end - begin)) if apart else 0


class Watch:
    """What a run should be told, each kind once: `step` and `update` return a sentence, or None."""

    def __init__(self, vocabulary: int) -> None:
        self.blind = math.log(vocabulary)
        self.first: float | None = None  # the entropy of the first step
        self.low = self.high = 0  # steps in a row
        self.told: set[str] = set()

    def step(self, now: float, rewards: Sequence[float]) -> str | None:
        """now: the `surprise` of a step's answers. rewards: the mean of each step so far, of this one too."""
        if not math.isfinite(now):
            return None
        if self.first is None:
            if len(rewards) > 1:  # of a run whose beginning nobody watched, there is nothing to compare with
                return None
            self.first = now
        way = now - self.first, self.blind - self.first
        begin, end, better = ends(rewards)
        self.low = self.low + 1 if now < LOW * self.first and better < 0 else 0
        self.high = self.high + 1 if self.first < HIGH * self.blind and way[0] > HIGH * way[1] else 0
        entropy = f"answers have an entropy of {now:.2g} nats a token, {self.first:.2g} at first"
        if self.low >= LASTING:
            return self._once(
                "low",
                f"{entropy}, and are worth less ({end:.3g}, {begin:.3g} at first): the policy has come to "
                "say the same always. Begin anew with a lower train.lr, or with a policy.kl",
            )
        if self.high and better <= 0 and (self.high > 1 or better < 0 or way[0] > BLIND * way[1]):
            return self._once(
                "high",
                f"{entropy}, and {self.blind:.2g} would be blind draws: the policy forgets what it knew. "
                "Begin anew with a lower train.lr, or with less policy.entropy",
            )
        return None

    def update(self, told: Mapping[str, float], *, fresh: bool) -> str | None:
        """told: `gap` and `clipped` of the objective, before an update. fresh: the weights as they are wrote
        these answers."""
        gap = told["gap"]
        if fresh and told["clipped"] > CLIPPED:
            return self._once(
                "clipped",
                f"{told['clipped']:.0%} of the tokens are clipped before anything is learnt, by what trainer "
                f"and generator differ alone ({gap:.2g} nats a token): they teach nothing. Set "
                "train.precision to fp32, or widen policy.clip_low and policy.clip_high",
            )
        if not fresh and gap > MOVED:
            return self._once(
                "moved",
                f"the policy is {gap:.2g} nats a token from the weights that wrote what it learns from, and "
                "ratios are clipped long before. Begin anew with a lower train.lr, or with fewer updates "
                "from one answer (policy.updates, policy.epochs, staleness)",
            )
        return None

    def _once(self, kind: str, said: str) -> str | None:
        if kind in self.told:
            return None
        self.told.add(kind)
        return said

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"first": self.first, "low": self.low, "high": self.high, "told": sorted(self.told)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.first, self.low, self.told = state["first"], int(state["low"]), set(state["told"])
        self.high = int(state.get("high", 0))  # of a checkpoint from before it was counted
