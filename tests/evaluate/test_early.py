"""The early verdict: from the prefix alone, the same each time, comparative."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.evaluate.early import Best, Point, best, read, scores, spearman, stopped

points = st.lists(
    st.builds(Point, st.integers(1, 100), st.floats(0.1, 9), st.floats(1e-3, 50)), min_size=1, max_size=8
)


@given(st.dictionaries(st.sampled_from("abcde"), points, min_size=2), st.integers(0, 99))
def test_only_the_prefix_counts(runs: dict[str, list[Point]], later: int) -> None:
    runs = {name: [Point(1, 1.0 + i, 1.0), *each] for i, (name, each) in enumerate(runs.items())}
    until = 40
    cut = {name: [p for p in each if p.samples <= until] for name, each in runs.items()}
    assert scores(runs, until) == scores(cut, until)
    assert sum(scores(runs, until).values()) == pytest.approx(0, abs=1e-9)


def test_a_higher_loss_and_a_lower_norm_are_better() -> None:
    def run(loss: float, norm: float) -> list[Point]:
        return [Point(n, loss, norm) for n in (8, 16)]

    found = scores(
        {"both": run(3.0, 0.5), "loss": run(3.0, 2.0), "norm": run(2.0, 0.5), "none": run(2.0, 2.0)}, 16
    )
    assert found["both"] > found["loss"] == pytest.approx(found["norm"], abs=1e-9)
    assert found["norm"] > found["none"]
    assert stopped(found, share=0.25) == {"none"}
    assert "both" not in stopped(found)
    assert stopped(found, share=0.25, tolerance=10.0) == set()


def test_equal_runs_have_equal_scores() -> None:
    same = [Point(8, 2.0, 1.0)]
    assert scores({"a": same, "b": same}, 8) == {"a": 0.0, "b": 0.0}


def test_runs_that_cannot_be_compared_are_named() -> None:
    with pytest.raises(ShunterError, match="b has no line of its log within 8 samples"):
        scores({"a": [Point(8, 1.0, 1.0)], "b": [Point(9, 1.0, 1.0)]}, 8)
    with pytest.raises(ShunterError, match="at least two"):
        scores({"a": [Point(8, 1.0, 1.0)]}, 8)


@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=12),
    st.lists(st.integers(0, 5), min_size=12, max_size=12),
)
def test_the_correlation_of_ranks_is_scipys(a: list[int], b: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    b = b[: len(a)]
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert spearman(a, b) == pytest.approx(float(stats.spearmanr(a, b).statistic), abs=1e-9)
    else:
        assert spearman(a, b) == 0.0


def test_logs_are_read_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    draw = np.random.default_rng(0).random((3, 2))
    lines = [
        {
            "event": "metrics",
            "step": n + 1,
            "t": 0.0,
            "values": {"train/loss": float(x), "train/grad_norm": float(y)},
        }
        for n, (x, y) in enumerate(draw)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(path, 16)
    assert [point.samples for point in found] == [16, 32, 48]
    assert found[1].loss == draw[1][0]


def test_when_a_run_was_at_its_best(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    losses = {4: 3.0, 8: 2.0, 12: 2.0, 16: 2.5}
    lines = [
        {"event": "metrics", "step": n, "t": 0.0, "values": {"train/loss": 1.0 / n}} for n in range(1, 17)
    ]
    lines += [
        {"event": "metrics", "step": n, "t": 0.0, "values": {"valid/loss": v}} for n, v in losses.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best(path, 32) == Best(8, 256, 2.0)
    assert best(path, 8, before=5) == Best(13, 104, 2.0)
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ShunterError, match="never validated"):
        best(path, 8)
