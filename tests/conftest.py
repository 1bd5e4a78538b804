"""What holds for every test: the same draws each time, and nothing taken from the person's environment."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

# Before torch is loaded, as the command line does it: spinning workers starve whoever shares the machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:  # others have the other cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# Two cores are shared by many tests: time limits per example would fail at random, and so would draws
# that differ from run to run.
settings.register_profile(
    "shunter",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("shunter")


def pytest_collection_finish() -> None:
    """What is loaded now stays: the collections that each job ends with need not walk over it every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHUNTER_STORE", "SHUNTER_INJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def pool() -> Iterator[Any]:
    """Gloo workers that all tests of several ranks share; started when the first one asks."""
    from tests.parallel.pool import Pool

    workers = Pool()
    yield workers
    workers.close()
