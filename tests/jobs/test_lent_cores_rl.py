"""`rl` whose processes lend each other cores: what that changes, and where nothing is lent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from shunter.post import beside, cores, delayed
from shunter.post.step import Gradient
from tests.jobs.conftest import Work
from tests.jobs.test_delayed_rl import rows_of
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks

__all__ = ["model", "talks"]  # fixtures
CORES = 4
SHARED = {**HOW, "threads": 0, "writer": "process"}


@pytest.fixture
def had(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bool]]]:
    """Threads of the learner before each gradient, with whether the writer owes anything. The machine has
    four cores, as it seems."""
    found: list[tuple[int, bool]] = []
    learners: list[delayed.Delayed] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(CORES)))
    add, rows = Gradient.add, delayed.Delayed._rows

    def noted(self: Gradient, batch: Any) -> None:
        writer = learners[-1].writer
        assert isinstance(writer, beside.Beside)
        before = writer.owes > 0
        add(self, batch)
        if (writer.owes > 0) == before:  # else it may have had either
            found.append((torch.get_num_threads(), before))

    def remembered(self: delayed.Delayed, *given: Any) -> Any:
        learners.append(self)
        return rows(self, *given)

    monkeypatch.setattr(Gradient, "add", noted)
    monkeypatch.setattr(delayed.Delayed, "_rows", remembered)
    yield found
    for learner in learners[-1:]:
        assert learner.cores is None or not learner.cores.waits(cores.LEARNER)


def test_the_learner_has_the_cores_of_a_writer_that_owes_nothing_and_gives_them_back(
    work: Work, model: Path, talks: Path, had: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's weights may write one step more, so gradients are taken with and without a writer at work.
    Where it waits for answers, its cores are the writer's."""
    wait, lent = delayed.Delayed._wait, list[int]()

    def noted(self: delayed.Delayed, seen: int) -> None:
        assert self.cores is not None
        lent.append(self.cores.of(1))
        wait(self, seen)

    monkeypatch.setattr(delayed.Delayed, "_wait", noted)
    before = torch.get_num_threads()
    more: dict[str, Any] = {"staleness": 1, "train": {"steps": 12, "lr": 1e-3}, "max_new_tokens": 24}
    reinforce(work, model, talks, name="old", how={**SHARED, "at_once": 4}, **more)
    assert {count for count, busy in had if busy} == {CORES // 2}
    # On a busy machine the writer may owe something whenever a gradient is taken.
    assert {count for count, busy in had if not busy} <= {CORES}
    assert set(lent) == {CORES}
    assert torch.get_num_threads() == before


def test_numbers_are_those_of_fixed_cores_within_rounding(
    work: Work, model: Path, talks: Path, had: list[tuple[int, bool]]
) -> None:
    """Written by the newest weights, a step is the same, however it is shared out."""
    outs = {}
    for name, threads in (("lent", 0), ("fixed", 1)):
        how = {**SHARED, "threads": threads, "at_once": 4}
        outs[name], _ = reinforce(work, model, talks, name=name, how=how)
    assert {count for count, _ in had} > {1}
    lent, fixed = (load_file(out / "model.safetensors") for out in outs.values())
    for name, tensor in fixed.items():
        np.testing.assert_allclose(lent[name], tensor, rtol=1e-4, atol=1e-6)
    rewards = [[row["rl/reward"] for row in rows_of(out)] for out in outs.values()]
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize(
    ("asked", "threads"),
    [({"deterministic": True}, CORES // 2), pytest.param({"threads": 3}, 3, marks=pytest.mark.long)],
    ids=str,
)
def test_where_bits_must_be_the_same_or_a_number_is_given_nothing_is_lent(
    work: Work,
    model: Path,
    talks: Path,
    had: list[tuple[int, bool]],
    asked: dict[str, Any],
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bits depend on the number of threads."""

    def never(*given: Any) -> cores.Cores:
        raise AssertionError("cores are shared")

    monkeypatch.setattr(cores.Cores, "shared", never)
    reinforce(work, model, talks, staleness=1, how={**SHARED, **asked})
    assert {count for count, _ in had} == {threads}
