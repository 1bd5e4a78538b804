"""Rates as functions of the absolute step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.train.config import TrainConfig
from shunter.train.schedule import rate


@given(
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.integers(1, 300),
    st.integers(0, 50),
    st.floats(0.05, 1.0),
    st.floats(0, 1),
)
def test_shape(schedule: str, steps: int, warmup: int, decay: float, final: float) -> None:
    config = TrainConfig(
        steps=steps, warmup=min(warmup, steps), schedule=schedule, decay=decay, final=final, lr=0.5
    )
    rates = [rate(config, step) for step in range(steps)]
    assert all(0 <= value <= 0.5 + 1e-12 for value in rates)
    peak = config.warmup
    assert rates[:peak] == pytest.approx([0.5 * (step + 1) / peak for step in range(peak)])
    assert all(a >= b - 1e-12 for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if schedule == "constant":
        assert set(rates[peak:]) <= {0.5}
    elif steps > peak:
        assert rates[-1] == pytest.approx(0.5 * final)


def test_wsd_is_flat_before_its_decay() -> None:
    config = TrainConfig(steps=100, warmup=10, schedule="wsd", decay=0.2, final=0.0, lr=1.0)
    assert {rate(config, step) for step in range(10, 80)} == {1.0}
    assert rate(config, 89) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"steps": 5, "warmup": 6}, "longer than steps"),
        ({"steps": 5, "betas": [0.9, 1.0]}, r"must lie in \[0, 1\)"),
        ({"steps": 5, "restart": {"at": 5}}, "must be below steps"),
    ],
)
def test_contradictions_are_refused(config: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainConfig.model_validate(config)
