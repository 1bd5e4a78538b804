"""Seconds of a layer: against one measured on an H100, and how they move with the layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.plan import compute
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import EAGER, FUSED, PRACTICES, Coefficients, Elementwise
from shunter.plan.presets import preset


def question(name: str = "llama-3-8b", row: int = 8192, move: Elementwise = FUSED) -> Question:
    practice = replace(PRACTICES["torchtitan"], elementwise=move)
    return Question(preset(name), Fabric.of(files.find("8xh100")), 16, row, practice, Coefficients())


# One layer of these shapes in torch 2.11 on an H100 80GB HBM3, bf16, medians of 10, 2026-11-26: rows, tokens
# a row, seconds forward, and both passes.
MEASURED = {
    "compiled": (
        FUSED,
        [(1, 8192, 6.149e-3, 20.65e-3), (2, 8192, 13.15e-3, 41.60e-3), (1, 2048, 1.369e-3, 4.607e-3)],
    ),
    "eager": (
        EAGER,
        [(1, 8192, 6.672e-3, 22.63e-3), (2, 8192, 14.24e-3, 45.79e-3), (1, 2048, 1.489e-3, 5.130e-3)],
    ),
}


@pytest.mark.parametrize("kind", MEASURED)
def test_a_layer_takes_what_it_took_on_an_h100(kind: str) -> None:
    move, rows = MEASURED[kind]
    for count, row, forward, both in rows:
        asked = question(row=row, move=move)
        found = compute.layer(asked, Choices.one(Grid(), count), asked.fabric.device)
        # 2048 tokens are on the border of two classes of shapes.
        near = 0.10 if row * count > 2048 else 0.16
        assert found.forward[0] == pytest.approx(forward, rel=near)
        assert found.forward[0] + found.backward[0] == pytest.approx(both, rel=near)


def test_work_is_shared_by_every_axis_that_cuts_it() -> None:
    asked = question()
    device = asked.fabric.device
    whole = compute.layer(asked, Choices.one(Grid(), 2), device).forward[0]
    for grid in (Grid(tp=2), Grid(cp=2), Grid(tp=2, cp=2)):
        part = compute.layer(asked, Choices.one(grid, 2), device).forward[0]
        share = grid.tp * grid.cp
        assert whole / share <= part < 1.35 * whole / share  # smaller products are slower, never faster


def test_experts_cost_what_tokens_meet_and_not_what_there_is() -> None:
    asked = question("mixtral-8x7b")
    device = asked.fabric.device
    one = Choices.one(Grid(), 1)
    dense = compute.layer(asked, one, device).forward[0]
    mixture = compute.layer(asked, one, device, experts=True).forward[0]
    # Two experts of eight; their grouped products reach about half the rate of plain ones.
    assert 1.3 * dense < mixture < 3.4 * dense


def test_many_layouts_at_once_are_each_alone() -> None:
    asked = question()
    device = asked.fabric.device
    grids = [Grid(), Grid(tp=2), Grid(tp=4, cp=2), Grid(tp=8)]
    together = Choices.of([[g.pp, g.dp, g.fsdp, g.cp, g.tp, 1, 1, 2, 0, 1, 0] for g in grids])
    found = compute.layer(asked, together, device).backward
    alone = [compute.layer(asked, Choices.one(g, 2), device).backward[0] for g in grids]
    assert np.allclose(found, alone)
