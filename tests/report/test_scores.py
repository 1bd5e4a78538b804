"""Scores: every value with interval, unit and baseline; pairs with what their interval says of zero."""

import pytest

from shunter.report import numbers
from shunter.report.scores import parse
from shunter.report.summary import score_lines


def entry(**changes):
    return {
        "metric": "exact_match",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "unit": "fraction",
        "n": 90,
        **changes,
    }


@pytest.mark.parametrize(
    "data",
    [
        {"models": {"tuned": {"tasks": {"sums": entry()}}}},
        {"format": 1, "tuned": {"sums": entry()}},
        {"tasks": {"tuned": {"sums": entry()}}},
        {"scores": [entry(model="tuned", task="sums")]},
        {"model": "tuned", "tasks": {"sums": entry(model="tuned")}},
    ],
)
def test_a_score_is_found_wherever_it_lies(data):
    (score,) = parse(data).scores
    assert (score.model, score.task, score.value, score.low, score.n) == ("tuned", "sums", 0.5, 0.4, 90)


def test_one_model_takes_the_name_it_is_given():
    (score,) = parse({"tasks": {"sums": entry()}}, model="base").scores
    assert (score.model, score.task) == ("base", "sums")


@pytest.mark.parametrize(
    "given",
    [
        {"baseline": {"name": "xz", "value": 2.0}},
        {"baselines": {"xz": 2.0}},
        {"baselines": [{"name": "xz", "value": 2}]},
    ],
)
def test_baselines(given):
    (score,) = parse({"base": {"text": entry(**given)}}).scores
    assert [(b.name, b.value) for b in score.baselines] == [("xz", 2.0)]


def test_pairs_and_zero():
    pairs = parse(
        {
            "pairs": [
                {
                    "task": "sums",
                    "metric": "m",
                    "a": "base",
                    "b": "tuned",
                    "difference": 0.1,
                    "low": 0.02,
                    "high": 0.2,
                },
                {
                    "task": "sums",
                    "metric": "m",
                    "a": "base",
                    "b": "tuned",
                    "difference": -0.1,
                    "low": -0.2,
                    "high": 0.0,
                },
                {
                    "task": "sums",
                    "metric": "m",
                    "a": "base",
                    "b": "tuned",
                    "difference": -0.1,
                    "low": -0.2,
                    "high": -0.01,
                },
            ]
        }
    ).pairs
    assert [pair.excludes_zero for pair in pairs] == [True, False, True]


@pytest.mark.parametrize("data", [None, [], 3, {"a": {"metric": "m", "value": "nan"}}, {"difference": 1}])
def test_what_is_no_score_is_none(data):
    assert parse(data).scores == []
    assert score_lines(data) == []


def test_lines_name_unit_interval_and_baseline():
    lines = score_lines(
        {
            "base": {
                "text": entry(
                    metric="bits_per_byte",
                    value=1.702,
                    low=1.68,
                    high=1.72,
                    unit="bits/byte",
                    n=61,
                    baseline={"name": "xz -9", "value": 2.31},
                ),
                "sums": entry(),
            },
            "pairs": [
                {
                    "task": "sums",
                    "metric": "exact_match",
                    "a": "base",
                    "b": "tuned",
                    "difference": 0.427,
                    "low": 0.371,
                    "high": 0.482,
                    "unit": "fraction",
                    "n": 300,
                }
            ],
        }
    )
    assert lines == [
        "text  bits_per_byte  base  1.702 [1.680, 1.720] bits/byte, 61 items  xz -9: 2.310",
        "sums  exact_match    base  50.0 % [40.0 %, 60.0 %], 90 items",
        "sums exact_match: tuned minus base = +42.7 pp [+37.1 pp, +48.2 pp], 300 paired items; "
        "the interval excludes zero",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.421, "0.42 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (None, "\u2013"),
        (float("nan"), "\u2013"),
        (190000, "2 d 04 h"),
    ],
)
def test_durations(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (812, "812 B"),
        (1 << 20, "1 MiB"),
        (300 << 20, "300 MiB"),
        (1023 * 1024, "0.999 MiB"),
        (None, "\u2013"),
    ],
)
def test_sizes(count, text):
    assert numbers.size(count) == text


def test_moments_and_axis_labels():
    assert (
        numbers.moment("2026-02-03T14:05:00+00:00") == numbers.moment(1770127500.0) == "2026-02-03 14:05 UTC"
    )
    assert numbers.moment("yesterday") == "yesterday"
    assert [numbers.compact(v) for v in (0, 0.0003, 0.003, 12.5, 9000, 40000, 2.5e6)] == [
        "0",
        "0.0003",
        "0.003",
        "12.5",
        "9000",
        "40k",
        "2.5M",
    ]
    assert numbers.value(0.00021) == "0.00021"
    assert numbers.signed(-0.5) == "\u22120.500"
