"""A network learns peak memory of layouts. What this cannot show: memory of a GPU; `shunter reproduce
pipette` measures executed layouts."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from shunter.config.errors import ShunterError
from shunter.plan.memory_net import features, train


def layouts(devices: list[int], count: int, seed: int) -> tuple[list[list[float]], list[float], list[float]]:
    """Features, a made-up truth with terms that a formula leaves out, and that formula."""
    draw = random.Random(seed)
    rows, peaks, formula = [], [], []
    for _ in range(count):
        total, pp, tp = draw.choice(devices), draw.choice([1, 2]), draw.choice([1, 2])
        layers, hidden, micro = draw.choice([4, 8]), draw.choice([64, 128]), draw.choice([1, 2, 4])
        dp = total // pp // tp
        batch = micro * dp * draw.choice([2, 4])
        weights = 12 * hidden**2 * layers / pp / tp
        kept = min(pp, batch / dp / micro) * layers / pp * micro * 64 * hidden * (10 + 24 / tp)
        rows.append(features(layers, hidden, 4, pp, tp, dp, micro, batch))
        peaks.append(16 * weights + 2.7 * kept + 3e5 * micro / tp)
        formula.append(16 * weights + kept)
    return rows, peaks, formula


def test_it_carries_on_to_more_devices_and_refuses_what_is_far_out() -> None:
    rows, peaks, _ = layouts([4, 8, 16], 80, 0)
    net = train(rows, peaks, epochs=100, members=2)
    later, truth, formula = layouts([32], 20, 1)
    error = mean(abs(net(row) / peak - 1) for row, peak in zip(later, truth, strict=True))
    assert error < 0.1
    assert error < 0.5 * mean(abs(told / peak - 1) for told, peak in zip(formula, truth, strict=True))
    assert train(rows, peaks, epochs=100, members=2)(later[0]) == net(later[0])
    with pytest.raises(ShunterError, match=r"devices is 4096, and was 4 to 16 in training: too far out"):
        net(features(8, 128, 4, 2, 2, 1024, 1, 2048))
