"""Which of the rows that are ready a task takes, and how a step's rows are shared out over ranks."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

# (cells of the rows that are ready, oldest first; how many are wanted) -> rows to take; none: wait.
Sampler = Callable[[Mapping[int, Mapping[str, Any]], int], Sequence[int]]
K = TypeVar("K", bound=Hashable)


def in_order(ready: Mapping[int, Mapping[str, Any]], count: int) -> Sequence[int]:
    """The oldest rows."""
    return list(ready)[:count] if len(ready) >= count else []


def by_group(size: int, column: str = "group") -> Sampler:
    """Whole groups of `size` rows that have one value in `column`, whatever their numbers: rows of a group
    come in the order in which they are finished, between those of others. A count that is no multiple is
    refused, and so is a group of more rows."""

    def take(ready: Mapping[int, Mapping[str, Any]], count: int) -> Sequence[int]:
        if count % size:
            raise ValueError(f"{count} rows are no whole groups of {size}")
        whole = [rows for rows in _groups(ready, column).values() if _complete(rows, size, column)]
        taken = [row for rows in whole[: count // size] for row in rows]
        return taken if len(taken) == count else []

    return take


def by_step(size: int, fits: Callable[[int], bool] = lambda step: True, *, whole: bool = False) -> Sampler:
    """Whole groups of the first step that has any, as many as are ready, in the order of their numbers; with
    `whole`, a step's `count` rows or none. fits: steps that are looked at. Columns: step, group, number."""

    def take(ready: Mapping[int, Mapping[str, Any]], count: int) -> Sequence[int]:
        steps: dict[int, dict[int, list[int]]] = {}
        for row, cells in ready.items():  # once: it is looked at whenever a row has come
            steps.setdefault(cells["step"], {}).setdefault(cells["group"], []).append(row)
        for step in sorted(step for step in steps if fits(step)):
            groups = [rows for rows in steps[step].values() if _complete(rows, size, "group")]
            found = sorted((row for rows in groups for row in rows), key=lambda row: ready[row]["number"])
            if found and (len(found) == count or not whole):
                return found
        return []

    return take


def by_length(parts: int, size: int = 1, column: str = "group", length: str = "length") -> Sampler:
    """The oldest whole groups, ordered so that as many rows for each of `parts` ranks follow each other and
    the ranks' sums of `length` are alike; no group is on two ranks. size: rows of a group."""

    def take(ready: Mapping[int, Mapping[str, Any]], count: int) -> Sequence[int]:
        if count % (size * parts):
            raise ValueError(f"{count} rows are no whole groups of {size} for each of {parts} ranks")
        groups = {
            name: rows for name, rows in _groups(ready, column).items() if _complete(rows, size, column)
        }
        chosen = list(groups)[: count // size]
        if len(chosen) * size < count:
            return []
        weights = {name: float(sum(ready[row][length] for row in groups[name])) for name in chosen}
        return [row for part in balanced(weights, parts) for name in part for row in groups[name]]

    return take


def balanced(weights: Mapping[K, float], parts: int) -> list[list[K]]:
    """What is weighed, shared out into `parts` lists whose sizes differ by one at most and whose sums are
    alike: the better of two ways. Where weights are alike the one by differences is far better, where a few
    are heavy the other one."""
    ways = (_by_differences(weights, parts), _to_the_emptiest(weights, parts))

    def spread(found: list[list[K]]) -> float:
        totals = [sum(weights[key] for key in part) for part in found]
        return max(totals) - min(totals)

    return min(ways, key=spread)


def _to_the_emptiest(weights: Mapping[K, float], parts: int) -> list[list[K]]:
    """The heaviest to the emptiest list; one that is full takes no more."""
    most, more = divmod(len(weights), parts)
    found: list[list[K]] = [[] for _ in range(parts)]
    totals = [0.0] * parts
    for key in sorted(weights, key=lambda key: -weights[key]):
        full = sum(len(part) > most for part in found) >= more
        part = min((i for i in range(parts) if len(found[i]) < most + (not full)), key=lambda i: totals[i])
        found[part].append(key)
        totals[part] += weights[key]
    return found


def _by_differences(weights: Mapping[K, float], parts: int) -> list[list[K]]:
    """Karmarkar and Karp, 1982: like weights are set against each other first, then the two partial answers
    that are most uneven are joined, the heaviest part of one with the lightest of the other. Each partial
    answer has as many in each part."""
    order = sorted(weights, key=lambda key: -weights[key])
    heap: list[tuple[float, int, list[tuple[float, list[K]]]]] = []
    for number, begin in enumerate(range(0, len(order), parts)):
        some = [(weights[key], [key]) for key in order[begin : begin + parts]]
        some += [(0.0, [])] * (parts - len(some))
        heapq.heappush(heap, (some[-1][0] - some[0][0], number, some))
    number = len(order)
    while len(heap) > 1:
        (_, _, a), (_, _, b) = heapq.heappop(heap), heapq.heappop(heap)
        b = b[::-1]
        joined = sorted(((x + y, left + right) for (x, left), (y, right) in zip(a, b, strict=True)), key=_sum)
        number += 1
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], number, joined))
    return [keys for _, keys in heap[0][2]] if heap else [[] for _ in range(parts)]


def _sum(part: tuple[float, Any]) -> float:
    return -part[0]


def _groups(ready: Mapping[int, Mapping[str, Any]], column: str) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for row, cells in ready.items():
        found.setdefault(cells[column], []).append(row)
    return found


def _complete(rows: Sequence[int], size: int, column: str) -> bool:
    if len(rows) > size:
        raise ValueError(f"{len(rows)} rows have one value in {column}, and groups are of {size}")
    return len(rows) == size
