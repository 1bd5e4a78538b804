"""Learning-rate schedules: functions of the absolute step, so that no resume can shift them."""

from __future__ import annotations

import math
from typing import Protocol


class Curve(Protocol):
    """What a learning rate's course depends on; fields of the training's configuration."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def schedule(self) -> str: ...
    @property
    def decay(self) -> float: ...
    @property
    def final(self) -> float: ...


def rate(config: Curve, step: int) -> float:
    """Learning rate of the step with index `step` (from 0) of `config.steps`.

    cosine: arXiv 1608.03983 without restarts. wsd: linear decay over the last `decay` share
    (arXiv 2404.06395). All end at `final` times the peak, except constant.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    begin = config.warmup
    if config.schedule == "wsd":
        begin = max(begin, min(config.steps - 1, round(config.steps * (1 - config.decay))))
    if step < begin:
        return config.lr
    done = (step - begin + 1) / max(1, config.steps - begin)
    done = min(1.0, done)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final + (1 - config.final) * shape)
