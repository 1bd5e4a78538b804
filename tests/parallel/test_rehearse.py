"""Padded stages on real processes: the simulated step time and the idle share of the formula."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from shunter.parallel.mesh import Groups
from shunter.parallel.rehearse import rehearse
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate
from tests.parallel.pool import Pool

PAD = 0.02


def task(rank: int, groups: Groups, case: tuple[str, int, bool]) -> Any:
    name, microbatches, again = case
    order = schedule(name).build(2, microbatches)
    order = recomputed(order) if again else order
    costs = Costs.even(order.placement, PAD, PAD, PAD)
    return rehearse(order, costs, groups, rank, repeats=3), simulate(assemble(order), costs).elapsed


@pytest.mark.parametrize(("name", "again"), [("gpipe", False), ("gpipe", True), ("interleaved-1f1b", False)])
def test_the_measured_idle_share_is_the_formula_s(pool: Pool, name: str, again: bool) -> None:
    """The best of three steps, since other work on the machine only adds."""
    (found, simulated), (other, _) = pool.run(task, 2, (name, 4, again))
    assert simulated <= min(found["seconds"]) < 1.15 * simulated
    assert len(other["seconds"]) == 3
    assert "idle" not in other
    if name == "gpipe" and not again:
        assert min(found["idle"]) == pytest.approx(1 / 5, abs=0.04)
    medians = {(op, stage): seconds for op, stage, seconds in found["costs"]}
    share = 0.5 if name == "interleaved-1f1b" else 1.0
    assert medians["F", 0] == pytest.approx(PAD * share, rel=0.3)
    assert medians["B", 0] == pytest.approx(2 * PAD * share, rel=0.3)
    assert (("R", 0) in medians) == again
    assert found["worked"] > 0  # how much depends on who else is using the machine
    assert statistics.median(found["seconds"]) >= simulated
