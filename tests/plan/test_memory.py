"""Bytes of a rank: in flight as the simulator has it, and each part moves as its axis says."""

from __future__ import annotations

import numpy as np
import pytest

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.plan import memory
from shunter.plan.choices import SCHEDULES, Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import simulate

SHAPES = [(p, m, v) for p in (2, 3, 4, 6) for m in (1, 2, 3, 4, 6, 7, 12) for v in (1, 2, 3)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_in_flight_is_what_the_simulator_holds(name: str) -> None:
    for p, m, v in SHAPES:
        chunks = v if name == "interleaved-1f1b" else 2 if name == "zbv" else 1
        if (name == "interleaved-1f1b") != (v > 1) or (name == "interleaved-1f1b" and m % p):
            continue
        order = schedule(name).build(p, m, chunks=None if chunks == 1 or name == "zbv" else chunks)
        peaks = simulate(assemble(order), Costs.even(order.placement)).peak_activations
        number, one = np.array([SCHEDULES.index(name)]), np.ones(1, dtype=np.int64)
        found = [
            float(memory.in_flight(number, one * p, one * chunks, one * m, one * rank)[0])
            for rank in range(p)
        ]
        assert found == pytest.approx(peaks), (p, m, v)


def question(practice: str = "shunter") -> Question:
    fabric = Fabric.of(files.find("8xa100-80"))
    return Question(preset("llama-2-7b"), fabric, 64, 2048, PRACTICES[practice], Coefficients())


def parts(grid: Grid, practice: str = "shunter", recompute: str = "none") -> list[dict[str, float]]:
    return list(predict(question(practice), Choices.one(grid, 1, recompute=recompute)).bytes)


def test_state_is_cut_by_what_cuts_it() -> None:
    spec = question().spec
    for grid in (Grid(fsdp=8), Grid(tp=8), Grid(pp=8), Grid(pp=2, tp=2, fsdp=2)):
        found = parts(grid)
        total = sum(each["weights"] for each in found) * grid.size / grid.pp
        copies = 4 * spec.num_parameters
        assert total == pytest.approx(copies, rel=0.002)  # small tensors are on every tensor rank
        assert sum(each["optimizer"] for each in found) == pytest.approx(
            2 * sum(each["weights"] for each in found)
        )
    assert parts(Grid(dp=8))[0]["weights"] == pytest.approx(4 * spec.num_parameters, rel=0.002)


def test_the_first_stage_has_most_in_flight() -> None:
    found = parts(Grid(pp=4, fsdp=2))
    held = [each["activations"] for each in found]
    assert held == sorted(held, reverse=True)


def test_recomputation_keeps_less() -> None:
    whole = parts(Grid(tp=8), "megatron-2021")[0]
    light = parts(Grid(tp=8), "megatron-2021", "layer")[0]
    assert light["activations"] < 0.2 * whole["activations"]
    assert light["inside"] > 0
