"""Two models on the same items. The spread between items, which both share, drops out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shunter.config.errors import ShunterError
from shunter.evaluate.intervals import bootstrap, mean, sign_test

Item = Mapping[str, Any]


def compare_items(items_a: Sequence[Item], items_b: Sequence[Item], *, seed: int = 0) -> dict[str, Any]:
    """b against a on the items that both have, paired by `id`.

    Items are lines of items.jsonl of one task: `id`, `score`, `metric`, `unit`, and `weight` where items
    count unequally (bits per byte: the bytes of the document). The same id with another target or
    weight is another item and not paired.

    Returns metric, unit, n (pairs), value_a and value_b (means over the pairs), difference (b minus a)
    with its 95 % interval `low`, `high` (bootstrap over pairs), b_higher, b_lower, equal (counts), p
    (exact sign test; McNemar's on right-or-wrong scores) and unpaired (items that only one side has).
    The interval is absent with fewer than two pairs, the values with none.
    """
    ours, theirs = _by_id(items_a), _by_id(items_b)
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs and _same(ours[key], theirs[key])]
    known: Item = items_a[0] if items_a else items_b[0] if items_b else {}
    result: dict[str, Any] = {
        "metric": str(known.get("metric", "score")),
        "unit": str(known.get("unit", "")),
        "n": len(pairs),
        "value_a": None,
        "value_b": None,
        "difference": None,
        "low": None,
        "high": None,
        "b_higher": 0,
        "b_lower": 0,
        "equal": 0,
        "p": None,
        "unpaired": len(ours) + len(theirs) - 2 * len(pairs),
    }
    if not pairs:
        return result
    a, b = ([float(pair[side]["score"]) for pair in pairs] for side in (0, 1))
    weights = [float(x.get("weight", 1.0)) for x, _ in pairs]
    differences = [y - x for x, y in zip(a, b, strict=True)]
    result["value_a"], result["value_b"] = mean(a, weights), mean(b, weights)
    result["difference"] = mean(differences, weights)
    low, high = bootstrap(differences, weights, seed=seed)
    if math.isfinite(low):
        result["low"], result["high"] = low, high
    result["b_higher"] = sum(d > 0 for d in differences)
    result["b_lower"] = sum(d < 0 for d in differences)
    result["equal"] = len(pairs) - result["b_higher"] - result["b_lower"]
    result["p"] = sign_test(result["b_higher"], result["b_lower"])
    return result


def _by_id(items: Sequence[Item]) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for number, item in enumerate(items):
        key = str(item.get("id", number))
        if key in found:
            raise ShunterError(f"two items of one task have the id {key!r}: they cannot be paired")
        found[key] = item
    return found


def _same(a: Item, b: Item) -> bool:
    return all(a.get(key) == b.get(key) for key in ("target", "weight", "metric"))
