"""Galvatron's dynamic programme: one strategy a layer, within a stage's memory, in the least time.

C(l, e, j) = min over i of C(l - 1, e - o(l, j), i) + r(l, i, j), plus c(l, j): the least time of the first
l layers in e units of memory where layer l has strategy j; o its memory, c its time, r what it costs to
change from strategy i to j (arXiv 2211.13878, section 4; Hetu-Galvatron, dp_core.cpp). Imports without torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shunter.plan.choices import Floats, Ints

UNITS = 512  # into which memory is cut where it is given in bytes


def solve(size: Floats, seconds: Floats, change: Floats | None, room: float, units: int = UNITS) -> list[int]:
    """The strategy of each layer. size, seconds: (layers, strategies); change: (strategies, strategies), from
    one to the other, or (layers, strategies, strategies). room: of memory.

    Memory is counted in room / units, rounded up, so that what is found fits. Empty where nothing fits.
    """
    if room < 0:
        return []
    unit = room / units if room > 0 else 1.0
    whole = np.ceil(size / unit - 1e-9).astype(np.int64)
    return programme(whole, seconds, change, units if room > 0 else 0)[0]


def programme(size: Ints, seconds: Floats, change: Floats | None, room: int) -> tuple[list[int], float, int]:
    """With memory in whole units: strategies, their time, and the units left; without a solution [], inf, -1.

    The whole table over memory is one numpy expression a layer: O(layers · room · strategies²) additions.
    """
    best, back = table(size, seconds, change, room)
    return follow(best, back, size, room)


def table(
    size: Ints, seconds: Floats, change: Floats | None, room: int
) -> tuple[Floats, npt.NDArray[np.signedinteger]]:
    """The least time by units of memory and last layer's strategy, and the strategy before it by layer."""
    layers, count = seconds.shape
    best: Floats = np.zeros((room + 1, count))
    back = np.empty((layers, room + 1, count), dtype=np.int16 if count < 2**15 else np.int32)
    for layer in range(layers):
        step = _step(change, layer, count)
        if step is None or layer == 0:
            came = np.broadcast_to(best.argmin(axis=1)[:, None], best.shape)
            through = np.broadcast_to(best.min(axis=1)[:, None], best.shape)
        else:
            came, through = _cheapest(best, step)
        fresh = np.full((room + 1, count), np.inf)
        for strategy in range(count):
            need = int(size[layer, strategy])
            if need > room:
                continue
            fresh[need:, strategy] = through[: room + 1 - need, strategy] + seconds[layer, strategy]
            back[layer, need:, strategy] = came[: room + 1 - need, strategy]
        best = fresh
    return best, back


def _step(change: Floats | None, layer: int, count: int) -> Floats | None:
    if change is None:
        return None
    step: Floats = change[layer] if change.ndim == 3 else change
    assert step.shape == (count, count)
    return step


def _cheapest(best: Floats, step: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """For each unit of memory and next strategy: from which one, and at what time."""
    rooms, count = best.shape
    through = best[:, 0, None] + step[0]
    came = np.zeros((rooms, count), dtype=np.int64)
    for before in range(1, count):
        other = best[:, before, None] + step[before]
        better = other < through
        through = np.where(better, other, through)
        came[better] = before
    return came, through


def follow(
    best: Floats, back: npt.NDArray[np.signedinteger], size: Ints, room: int
) -> tuple[list[int], float, int]:
    """What `programme` gives, for any room up to the table's."""
    strategy = int(best[room].argmin())
    time = float(best[room, strategy])
    if not np.isfinite(time):
        return [], float("inf"), -1
    chosen, left = [strategy], room
    for layer in range(len(back) - 1, 0, -1):
        before = int(back[layer, left, strategy])
        left -= int(size[layer, strategy])
        strategy = before
        chosen.append(strategy)
    left -= int(size[0, strategy])
    return chosen[::-1], time, left
