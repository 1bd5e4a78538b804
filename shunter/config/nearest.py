"""The nearest valid name to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """Edits from `a` to `b`: insert, delete, replace a character, or swap two neighbours (each costs 1).

    Optimal string alignment, O(len(a) * len(b)); meant for keys, not for text.
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, right in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most likely means, or None when nothing is near.

    Near is: at most one edit and a third of the length, with case and the choice between `-`, `_` and
    a space counting nothing. Equally near candidates: the first.
    """
    best: tuple[int, str] | None = None
    plain = _plain(name)
    for candidate in candidates:
        edits = min(distance(name, candidate), distance(plain, _plain(candidate)))
        if edits <= 1 + len(name) // 3 and edits < len(candidate) and (best is None or edits < best[0]):
            best = (edits, candidate)
    return best[1] if best else None


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")
