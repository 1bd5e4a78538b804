"""Spikes are seen, named with a cause, and do not hide the next one."""

from __future__ import annotations

import math

import numpy as np

from shunter.train.spikes import SpikeDetector


def calm(detector: SpikeDetector, steps: int = 80) -> None:
    draw = np.random.default_rng(0)
    for step in range(steps):
        found = detector.look(
            step, 3 + 0.05 * draw.standard_normal(), 1 + 0.1 * draw.standard_normal(), [step]
        )
        assert found is None


def test_a_spike_names_its_rows() -> None:
    detector = SpikeDetector()
    calm(detector)
    spike = detector.look(80, 5.0, 1.0, [7, 8])
    assert spike is not None
    assert (spike["causes"], spike["rows"]) == (["data rows"], [7, 8])
    assert detector.look(81, 5.0, 1.0, [9]) is not None, "the first spike hides the second"


def test_a_restart_is_named() -> None:
    detector = SpikeDetector()
    calm(detector)
    detector.seam(80, "restart")
    spike = detector.look(85, 3.0, 9.0, [1])
    assert spike is not None
    assert spike["causes"] == ["restart"]
    far = detector.look(200, 3.0, 9.0, [1])
    assert far is not None
    assert far["causes"] == ["data rows"]


def test_falling_and_missing_values_are_no_spikes() -> None:
    detector = SpikeDetector()
    calm(detector)
    assert detector.look(80, 0.1, 0.01, []) is None
    assert detector.look(81, math.nan, math.inf, []) is None
    assert SpikeDetector().look(0, 100.0, 100.0, []) is None
