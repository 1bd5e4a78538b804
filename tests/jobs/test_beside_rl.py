"""`rl` with a writer in a process of its own: the same bits where they must be, and what ends it.

What this cannot show: another machine, a GPU, and a machine that loses power.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import Work
from tests.jobs.test_delayed_rl import EXACT, rows_of
from tests.jobs.test_post_jobs import model, reinforce, talks, weights

__all__ = ["model", "talks"]  # fixtures


@pytest.mark.parametrize("bound", [1, pytest.param(0, marks=pytest.mark.long)])
def test_another_process_writes_the_same_bits(work: Work, model: Path, talks: Path, bound: int) -> None:
    more: dict[str, Any] = {"staleness": bound, "train": {"steps": 4, "lr": 1e-3}}
    here, _ = reinforce(work, model, talks, name="here", how=EXACT, **more)
    out, metrics = reinforce(work, model, talks, name="apart", how={**EXACT, "writer": "process"}, **more)
    assert weights(out) == weights(here)
    assert [row["rl/staleness"] for row in rows_of(out)] == [min(step, bound) for step in range(4)]
    assert 0 < metrics["max_gap"] < 1e-5
