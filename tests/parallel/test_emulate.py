"""Steps over emulated links take what the event simulation says.

What this cannot show: that a real cluster's links behave so. They are assumed to carry one message after the
other at a steady rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shunter.parallel import emulate
from shunter.parallel.emulate import Case, measure
from shunter.parallel.mesh import Groups
from shunter.plan.pipette import Choice, Nodes, gradient_bytes, message_bytes
from shunter.plan.transformer import Shape
from shunter.plan.truth import simulated_step
from tests.parallel.pool import Pool

SLOW, FAST, WAIT = 4e6, 40e6, 0.002
SPEEDS = (1.0, 1.0, 1.0, 0.5)
RATES = [[FAST if a // 2 == b // 2 else SLOW for b in range(4)] for a in range(4)]


def task(rank: int, groups: Groups, cases: dict[str, Case]) -> Any:
    between = {(a, b): (WAIT, RATES[a][b]) for a in range(4) for b in range(4) if a != b}
    return measure(cases, between, rank, 2, 0.02)


def test_emulated_steps_are_what_the_simulation_says(pool: Pool) -> None:
    """Two pipelines of two stages: in one grid pipelines cross the slow links, in the other rings do."""
    shape = Shape(layers=2, hidden=64, heads=4, sequence=128, vocabulary=2048)
    nodes = Nodes(RATES, [[WAIT] * 4 for _ in range(4)], devices=1)
    choice = Choice(pp=2, tp=1, dp=2, rows=2, microbatches=4, compute=0.03)
    size, grads = message_bytes(shape, choice), tuple(gradient_bytes(shape, choice))
    within = Case((0, 1, 2, 3), 2, 4, (0.01, 0.01), (0.02, 0.02), size, grads)
    cases = {
        "within": within,
        "across": replace(within, grid=(0, 2, 1, 3)),
        "overlapped": replace(within, overlap=True, buckets=4),
        "slower": replace(within, grid=(0, 2, 1, 3), link=(WAIT, SLOW), speeds=SPEEDS),
    }
    found = {name: min(took) for name, took in pool.run(task, 4, cases)[0].items()}
    for name in ("within", "across"):
        expected = simulated_step(shape, nodes, choice, cases[name].grid)
        assert expected <= found[name] < 1.15 * expected + 0.01, (name, expected, found[name])
    slow = Nodes([[SLOW] * 4 for _ in range(4)], nodes.latency, devices=1)
    expected = simulated_step(shape, slow, choice, cases["slower"].grid, SPEEDS)
    assert expected <= found["slower"] < 1.15 * expected + 0.01, (expected, found["slower"])
    assert found["across"] < found["within"] - 0.02  # gradients are 360 kB here, messages 33 kB each
    # How much is gained is for the experiment to say: on a busy machine a few milliseconds are noise.
    assert found["overlapped"] < 1.1 * found["within"]


def test_unsteady_cases_take_more_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until their two least steps agree; steady ones take no more than were asked for."""
    seconds = {
        "steady": iter([9.0, 1.0, 1.005, 2.0]),
        "unsteady": iter([9.0, 1.2, 2.0, 3.0, 1.1, 1.0, 1.005]),
    }
    never = iter(float(n) for n in range(1, 99))
    cases = {
        name: Case((0,), 1, n, (), (), 0.0, ()) for n, name in enumerate(("steady", "unsteady", "never"))
    }
    steps = {0: seconds["steady"], 1: seconds["unsteady"], 2: never}
    monkeypatch.setattr(emulate, "step", lambda case, wires: next(steps[case.microbatches]))
    monkeypatch.setattr(emulate.dist, "all_reduce", lambda *rest: None)
    found = measure(cases, {}, 0, 3, 0.01)
    assert found["steady"] == [1.0, 1.005, 2.0]
    assert found["unsteady"] == [1.2, 2.0, 3.0, 1.1, 1.0, 1.005]
    assert len(found["never"]) == emulate.MOST * 3
