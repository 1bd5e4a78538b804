"""Groups of answers that tell the policy something, kept until there are enough of them for an update.

Where hardly any answer is right, most groups are worth the same throughout and teach nothing. An optimizer
that divides by the size of past gradients makes a full step of the one group that is left, whose wrong
answers are a few draws of chance. DAPO (arXiv 2503.14476, section 3.2, equation 11) therefore goes on
writing until a batch is full of groups that differ. Here the steps go on instead: no weight changes while
groups wait, so what they hold was written by the newest weights when it is learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shunter.post.batch import Sample

WATCHED = 20  # steps after which it is told that hardly any group teaches anything
MOST = 0.9  # share of groups that are worth the same throughout from which on that is told
EASE = "Ask what is neither too hard nor too easy for the model at this temperature"


class Flat:
    """How many groups teach nothing, over a training's first steps."""

    def __init__(self) -> None:
        self.steps, self.sum = 0, 0.0

    def step(self, share: float, rewards: Sequence[float], *, last: bool = False) -> str | None:
        """share: of a step's groups, those whose answers are all worth the same. rewards: of all steps so
        far. last: no step comes after it. A sentence where people should know: once on the way, and at the
        end where no group has taught anything."""
        self.steps, self.sum = self.steps + 1, self.sum + share
        mean, none = self.sum / self.steps, self.sum == self.steps
        worth = f"all answers are worth the same ({sum(rewards) / len(rewards):.2g} in the mean)"
        if last and none:
            return (
                f"in every group of all {self.steps} steps {worth}: rewards have taught nothing. "
                f"{EASE}, or raise group"
            )
        if self.steps != WATCHED or mean < MOST:
            return None
        if none:
            return (
                f"in every group of the first {WATCHED} steps {worth}: rewards teach nothing. {EASE}, or "
                "raise group"
            )
        return (
            f"in {min(mean, 0.99):.0%} of the groups of the first {WATCHED} steps {worth}: the few others "
            f"move the policy alone. {EASE}, raise group, or let updates wait for more of them "
            "(policy.least_groups)"
        )

    def state(self) -> list[float]:
        """As JSON values."""
        return [self.steps, self.sum]

    def restore(self, state: Sequence[float]) -> None:
        """What `state` gave."""
        self.steps, self.sum = int(state[0]), float(state[1])


class Gathering:
    """Samples of groups whose advantages are not all 0, in the order in which they came."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.groups = 0

    def add(self, samples: Sequence[Sample], size: int) -> None:
        """Of a step's samples, `size` a group, those of groups that teach something."""
        for begin in range(0, len(samples), size):
            group = samples[begin : begin + size]
            if any(each.teaches for each in group):
                self.samples += group
                self.groups += 1

    def take(self) -> list[Sample]:
        """All of them, with what is known of each: the reference is not asked in every step. None is left."""
        samples, self.samples, self.groups = self.samples, [], 0
        common = set(samples[0].known) if samples else set()
        for sample in samples:
            common &= sample.known.keys()
        return [
            replace(each, known={name: known for name, known in each.known.items() if name in common})
            for each in samples
        ]

    def state(self) -> dict[str, Any]:
        """As JSON values; a number's shortest decimal form is exact."""
        rows = [
            {
                "ids": [int(each) for each in sample.ids],
                "wrote": [bool(each) for each in sample.wrote],
                "masked": sample.masked,
                "known": {name: [float(v) for v in values] for name, values in sample.known.items()},
            }
            for sample in self.samples
        ]
        return {"groups": self.groups, "samples": rows}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.groups = int(state["groups"])
        self.samples = [
            Sample(
                row["ids"],
                row["wrote"],
                {k: np.asarray(v, np.float64) for k, v in row["known"].items()},
                bool(row.get("masked")),  # of a checkpoint from before there was such
            )
            for row in state["samples"]
        ]
