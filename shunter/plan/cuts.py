"""Where to cut layers into stages of unequal speed. Imports without torch."""

from __future__ import annotations

from collections.abc import Sequence

from shunter.config.errors import ShunterError
from shunter.parallel.cut import cut_layers


def cut_alike(
    layers: int,
    seconds: Sequence[float],
    besides: Sequence[float],
    at_most: Sequence[int] | None = None,
) -> list[int]:
    """Bounds of stages for layers that are all alike: stage s has layers bounds[s] to bounds[s + 1].

    seconds: of one layer on each stage's devices; besides: of what the stage does besides (embedding, head).
    at_most: layers that each stage has memory for, one at least.

    The slowest stage is as fast as it can be, and of such cuts it is one whose largest stages come last, so
    that the first ones, which hold most micro-batches, have few. Raises ShunterError for fewer layers than
    stages, and where the stages have no memory for all layers.
    """
    stages = len(seconds)
    if layers < stages:
        raise ShunterError(
            f"{layers} layers cannot be cut into {stages} stages",
            mend=f"Use at most {layers} stages: fewer ranks, or fewer chunks on each.",
        )
    if at_most is not None and sum(at_most) < layers:
        raise ShunterError(
            f"the stages have memory for {sum(at_most)} of {layers} layers", mend="Use fewer rows at once."
        )
    room = at_most or [layers] * stages
    limits = sorted({extra + n * each for each, extra in set(zip(seconds, besides, strict=True))
                     for n in range(1, layers - stages + 2)})  # fmt: skip
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        most = _most(limits[middle], seconds, besides, room)
        if sum(most) >= layers and _all(limits[middle], seconds, besides):
            high = middle
        else:
            low = middle + 1
    most = _most(limits[low], seconds, besides, room)
    counts = [1] * stages
    left = layers - stages
    # From the stage with most room: by what it would take with one layer more.
    while left:
        open_ = [s for s in range(stages) if counts[s] < most[s]]
        s = min(open_, key=lambda s: (besides[s] + (counts[s] + 1) * seconds[s], -s))
        counts[s] += 1
        left -= 1
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    return bounds


def _most(limit: float, seconds: Sequence[float], besides: Sequence[float], room: Sequence[int]) -> list[int]:
    """Layers that each stage can take within a limit and its memory; one at least."""
    return [
        max(1, min(most, int((limit - extra) / each + 1e-9)))
        for each, extra, most in zip(seconds, besides, room, strict=True)
    ]


def _all(limit: float, seconds: Sequence[float], besides: Sequence[float]) -> bool:
    """Whether one layer on each stage is within the limit."""
    return all(extra + each <= limit * (1 + 1e-9) for each, extra in zip(seconds, besides, strict=True))


def cut_mixed(
    costs: Sequence[float], placement: Sequence[int], first: float = 0.0, last: float = 0.0
) -> list[int]:
    """For layers that differ, as `shunter.parallel.cut` does it."""
    return cut_layers(costs, placement, first, last)
