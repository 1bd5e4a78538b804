"""Intervals cover what they say, and pairing sees what two separate intervals hide."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from shunter.config.errors import ShunterError
from shunter.evaluate.intervals import bootstrap, mean, sign_test, wilson
from shunter.evaluate.paired import compare_items


def items(scores, weights=None, **more):
    rows = [{"id": str(i), "score": float(s), "metric": "m", **more} for i, s in enumerate(scores)]
    for row, weight in zip(rows, weights or [], strict=bool(weights)):
        row["weight"] = weight
    return rows


def test_a_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        values, weights = generator.exponential(2.0, 60) + 1, generator.integers(1, 9, 60)
        low, high = bootstrap(values.tolist(), weights.tolist(), seed=trial, resamples=400)
        hits += low <= 3.0 <= high
    # 95 % of 200 is 190; a percentile interval of a skewed mean falls a little short.
    assert 176 <= hits <= 199


def test_the_normal_interval_of_many_items_agrees_with_resampling(monkeypatch):
    generator = np.random.default_rng(1)
    values, weights = generator.normal(5, 2, 4000).tolist(), generator.integers(1, 50, 4000).tolist()
    resampled = bootstrap(values, weights)
    monkeypatch.setattr("shunter.evaluate.intervals._MANY", 100)
    assert bootstrap(values, weights) == pytest.approx(resampled, abs=0.01)


def test_weights_belong_to_their_items():
    assert mean([1.0, 3.0], [3.0, 1.0]) == 1.5
    low, high = bootstrap([1.0, 1.0, 1.0, 1.0, 9.0], [9e3, 9e3, 9e3, 9e3, 0.1])
    assert low == pytest.approx(1.0)
    assert high < 1.1


def test_one_item_tells_nothing_about_spread():
    assert bootstrap([0.5]) == (-math.inf, math.inf)
    assert math.isnan(mean([]))


def test_wilson_is_not_empty_at_the_ends():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_sign_test_is_exact():
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 5) == 1.0
    assert sign_test(10, 0) == pytest.approx(2 / 1024)
    assert sign_test(1, 7) == pytest.approx(2 * 9 / 256)
    assert 0 <= sign_test(3000, 2700) < 1e-3


def test_pairing_sees_a_small_steady_difference():
    spread = np.random.default_rng(0).normal(0, 10, 100)
    found = compare_items(items(spread), items(spread + 0.1 + 0.01 * np.sin(np.arange(100))))
    assert found["difference"] == pytest.approx(0.1, abs=0.01)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert (found["n"], found["b_higher"], found["b_lower"], found["equal"]) == (100, 100, 0, 0)
    assert found["p"] < 1e-20
    low, high = bootstrap(spread.tolist())
    assert high - low > 1  # what one model's own interval says
    json.dumps(found)


def test_items_are_paired_by_id_and_counted_when_they_cannot_be():
    a, b = items([0, 1, 1]), list(reversed(items([1, 1, 1, 0])))
    found = compare_items(a, b)
    assert (found["n"], found["unpaired"], found["b_higher"], found["equal"]) == (3, 1, 1, 2)
    assert found["value_a"] == pytest.approx(2 / 3)
    assert found["value_b"] == 1.0
    other = [{**a[0], "target": "7"}, *a[1:]]
    assert compare_items(a, other)["n"] == 2, "the same id with another target is another item"
    assert compare_items(a, [])["difference"] is None
    assert compare_items(a[:1], b)["low"] is None
    with pytest.raises(ShunterError, match="two items of one task have the id '1'"):
        compare_items([*a, a[1]], b)


def test_the_difference_of_weighted_scores_is_the_difference_of_their_means():
    a, b = items([2.0, 4.0], [1, 3], unit="bits/byte"), items([3.0, 3.0], [1, 3], unit="bits/byte")
    found = compare_items(a, b)
    assert found["value_b"] - found["value_a"] == pytest.approx(found["difference"])
    assert found["difference"] == pytest.approx(-0.5)
    assert found["unit"] == "bits/byte"
