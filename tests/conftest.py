"""What holds for every test: the same draws each time, and nothing taken from the person's environment."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is loaded, as the command line does it: spinning workers starve whoever shares the machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:  # others have the other cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests import warm
from tests.draws import ALL, SHORT

ROOT = Path(__file__).parent

# Two cores are shared by many tests: time limits per example would fail at random, and so would draws
# that differ from run to run. `make test-all` draws more of everything that does not say how many itself.
for name, count in (("short", SHORT), ("all", ALL)):
    settings.register_profile(
        name,
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile("short")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "not long":
        settings.load_profile("all")
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        warm.share()  # who starts the workers, which inherit what it sets


# Files of few tests that take long. Side by side with others, they come first: one that begins when all
# others have ended would keep one core alone. Within a file nothing moves.
FIRST = (
    "test_readme.py",
    "drills/test_faults.py",
    "drills/test_kill.py",
    "train/test_layouts.py",
    "jobs/test_rank_deaths.py",
    "jobs/test_together.py",
    "jobs/test_curate_trouble.py",
    "surgery/test_layouts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put these files first; `make test` tells xdist to keep the order."""
    places = {ROOT / name: place for place, name in enumerate(FIRST)}
    assert all(path.exists() for path in places), "a file that comes first is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What there is now stays: the collections that each job ends with need not walk over it every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_stays() -> None:
    """The same for what tests have loaded and kept since: after some hundred files a collection would take
    seven times as long as in a process that runs one."""
    pytest_collection_finish()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHUNTER_STORE", "SHUNTER_INJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


# Modules that start processes of the package.
STARTERS = (
    "shunter.launch.drill",
    "shunter.launch.elastic",
    "shunter.post.beside",
    "shunter.post.roles.processes",
)


@pytest.fixture
def cold() -> None:
    """Processes that this test starts begin as they do for a person, not as forks: see tests/warm.py."""


def _begin(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    for name in STARTERS:
        # Also what a test or its fixture will import only when it starts the first process.
        if name in sys.modules or "torch" in sys.modules:
            monkeypatch.setattr(importlib.import_module(name), "subprocess", how)


@pytest.fixture(autouse=True, scope="session")
def _warm_for_fixtures() -> Iterator[None]:
    """Those that modules share are made before what is for single tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _begin(monkeypatch, warm.Subprocess())
        yield


@pytest.fixture(autouse=True)
def _warm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    _begin(monkeypatch, subprocess if "cold" in request.fixturenames else warm.Subprocess())


@pytest.fixture(scope="session")
def pool() -> Iterator[Any]:
    """Gloo workers that all tests of several ranks share; started when the first one asks."""
    from tests.parallel.pool import Pool

    workers = Pool()
    yield workers
    workers.close()
