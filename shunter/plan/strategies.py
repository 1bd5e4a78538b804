"""What each layer does with its inside until its backward: keep it, compute it again, put it aside.

One of Galvatron's programmes for each rank of the pipeline (`plan.dynamic`), within what its memory leaves:
layers are alike in memory and differ in time, nothing is paid between layers of different strategies, as all
have one layout. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shunter.plan import dynamic
from shunter.plan.choices import Floats

KEEP, AGAIN, ASIDE = range(3)
NAMES = ("kept", "computed again", "put aside")

# Strategies of a rank's layers, in order -> bytes of the rank.
Bytes = Callable[[Sequence[int]], float]


def cheapest(
    again: Sequence[float],
    aside: Sequence[float] | None,
    room: float,
    bytes_of: Bytes,
    most_aside: int | None = None,
) -> list[int]:
    """The strategy of each of a rank's layers: those that take least time of those that fit.

    again, aside: seconds more of each layer, for one micro-batch; aside: None where it cannot be. most_aside:
    layers for which the host has room. What fits nowhere is answered with what needs least.
    """
    count = len(again)
    kept = [KEEP] * count
    if count == 0 or bytes_of(kept) <= room:
        return kept
    if aside is not None and most_aside is not None and most_aside < count:
        return _bounded(again, aside, room, bytes_of, most_aside)
    found: list[tuple[float, list[int]]] = []
    # Putting aside has a price of its own, layers on their way, so it is looked at with and without.
    for allowed in ([AGAIN], *([[AGAIN, ASIDE]] if aside is not None else [])):
        least = allowed[-1]
        left = room - bytes_of([least] * count)
        if left < 0:
            continue
        names = [KEEP, *allowed]
        sizes = [0.0 if each == least else _more(bytes_of, each, least, count) for each in names]
        times = np.array([_seconds(each, again, aside) for each in names]).T
        chosen = dynamic.solve(np.array([sizes] * count), times, None, left)
        _give_back(chosen, sizes, times, left)
        strategies = [names[number] for number in chosen]
        if bytes_of(strategies) <= room:
            found.append((_total(strategies, again, aside), strategies))
    if found:
        return min(found, key=lambda each: each[0])[1]
    last = [[AGAIN] * count] + ([[ASIDE] * count] if aside is not None else [])
    return min(last, key=bytes_of)


def _bounded(
    again: Sequence[float], aside: Sequence[float], room: float, bytes_of: Bytes, most: int
) -> list[int]:
    """The same where the host has room for `most` layers, fewer than there are. Layers are alike in memory,
    so that numbers of each strategy decide what fits, and a table over both numbers what is cheapest."""
    count = len(again)

    def bytes_with(aside_: int, again_: int) -> float:
        return bytes_of([ASIDE] * aside_ + [AGAIN] * again_ + [KEEP] * (count - aside_ - again_))

    fitting = []
    for number in range(most + 1):
        if bytes_with(number, 0) <= room:
            fitting.append((number, 0))
        low, high = 1, count - number
        if high < 1 or bytes_with(number, high) > room:
            continue
        while low < high:  # the more are computed again, the less is held
            middle = (low + high) // 2
            low, high = (low, middle) if bytes_with(number, middle) <= room else (middle + 1, high)
        fitting.append((number, low))
    if not fitting:
        return min(([ASIDE] * n + [AGAIN] * (count - n) for n in range(most + 1)), key=bytes_of)
    best = np.full((most + 1, count + 1), np.inf)
    best[0, 0] = 0.0
    came = np.zeros((count, most + 1, count + 1), dtype=np.int8)
    for layer in range(count):
        ways = np.full((3, *best.shape), np.inf)
        ways[KEEP] = best
        ways[AGAIN, :, 1:] = best[:, :-1] + again[layer]
        ways[ASIDE, 1:] = best[:-1] + aside[layer]
        came[layer], best = ways.argmin(axis=0), ways.min(axis=0)
    a, b = min(fitting, key=lambda pair: float(best[pair]))
    found = []
    for layer in reversed(range(count)):
        strategy = int(came[layer, a, b])
        found.append(strategy)
        a, b = a - (strategy == ASIDE), b - (strategy == AGAIN)
    return found[::-1]


def _give_back(chosen: list[int], sizes: Sequence[float], times: Floats, left: float) -> None:
    """The programme rounds memory up to whole units: what that leaves lets further layers be kept."""
    free = left - sum(sizes[number] for number in chosen)
    for layer in np.argsort([-times[layer, number] for layer, number in enumerate(chosen)], kind="stable"):
        more = sizes[0] - sizes[chosen[layer]]
        if 0 < more <= free:
            chosen[layer], free = 0, free - more


def _more(bytes_of: Bytes, strategy: int, least: int, count: int) -> float:
    """Bytes more of one layer with this strategy, beside others with the leanest one."""
    if count == 1:
        return max(bytes_of([strategy]) - bytes_of([least]), 0.0)
    most = [least] * (count - 2)
    return max(bytes_of([strategy, *most, least]) - bytes_of([least, *most, least]), 0.0)


def _seconds(strategy: int, again: Sequence[float], aside: Sequence[float] | None) -> list[float]:
    if strategy == KEEP:
        return [0.0] * len(again)
    return list(again if strategy == AGAIN or aside is None else aside)


def _total(strategies: Sequence[int], again: Sequence[float], aside: Sequence[float] | None) -> float:
    return sum(_seconds(strategy, again, aside)[layer] for layer, strategy in enumerate(strategies))
