"""Layers, embedding and head with degrees of their own: as good as trying everything, never slower than one
grid, run as planned.

What this cannot show: that a layer takes on a device what the cost model says.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.anew import asked, ends_of, own_of, strategies_of
from shunter.plan.apart import Programme
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import Prediction, predict
from shunter.plan.search import search
from shunter.plan.strategies import AGAIN, KEEP
from shunter.plan.turning import turn
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout

SMALL = DecoderSpec(
    vocab_size=8000, dim=2048, num_layers=3, num_heads=16, num_kv_heads=16, head_dim=128, ffn_dim=5632,
    max_positions=4096, tied=False,
)  # fmt: skip


def question(spec: DecoderSpec, cluster: str, batch: int, row: int, devices: int = 0) -> Question:
    where = files.find(cluster)
    fabric = Fabric.of(where.subcluster(range(devices)) if devices else where)
    return Question(spec, fabric, batch, row, PRACTICES["shunter"], Coefficients())


def test_it_equals_trying_everything() -> None:
    """Three layers, three grids, kept or computed again: 216 layouts, each with its whole prediction.

    The programme takes it for granted that two layers of a grid are there at a time, where any has it. Of
    three layers one alone may have it: then it finds what is a little slower.
    """
    it = question(SMALL, "8xa100-80", 16, 4096, 4)
    programme = Programme(it, predict(it, Choices.one(Grid(tp=4), 4, recompute="layer")))
    mine = [0, 1, 4]
    programme.many, programme.insides = programme.many.take(mine), (KEEP, AGAIN)
    grids = [programme.many.take([number]) for number in range(len(mine))]
    every = []
    for ways in product(product(range(len(grids)), programme.insides), repeat=3):
        own = {number: grids[grid] for number, (grid, _) in enumerate(ways) if grid}
        inside = [each for _, each in ways]
        every.append(predict(it, programme.choice, strategies=inside, own=own))
    least, most = min(each.fullest for each in every), max(each.fullest for each in every)
    behind, layouts = [], set[tuple[Grid, int]]()
    for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        room = least + share * (most - least)
        found = programme.solve(room)
        assert found is not None
        assert found.fullest <= room
        layouts.add((found.choice.grid(0), len(found.own)))
        behind.append(found.seconds / min(each.seconds for each in every if each.fullest <= room))
    assert len(layouts) >= 3
    assert min(behind) > 1 - 1e-9
    assert max(behind) < 1.03
    assert sum(each < 1 + 1e-9 for each in behind) >= len(behind) / 2


def test_embedding_and_head_equal_trying_everything() -> None:
    """A vocabulary as large as the layers; two grids of layers, three of the ends: 192 layouts."""
    it = question(SMALL.model_copy(update={"vocab_size": 65536}), "8xa100-80", 16, 4096, 4)
    programme = Programme(it, predict(it, Choices.one(Grid(fsdp=4), 1, recompute="layer")))
    worth = programme.ends_worth_a_look(80e9)
    ends = [None, *worth[:2]]
    assert len(ends) == 3
    mine = [0, 1]
    programme.many, programme.insides = programme.many.take(mine), (KEEP, AGAIN)
    grids = [programme.many.take([number]) for number in range(len(mine))]
    every = []
    for at in ends:
        for ways in product(product(range(len(grids)), programme.insides), repeat=3):
            own = {number: grids[grid] for number, (grid, _) in enumerate(ways) if grid}
            inside = [each for _, each in ways]
            every.append(predict(it, programme.choice, strategies=inside, own=own, ends=at))
    least, most = min(each.fullest for each in every), max(each.fullest for each in every)
    behind, chosen = [], set[bool]()
    for share in (0.02, 0.1, 0.2, 0.4, 0.6, 0.8):
        room = least + share * (most - least)
        tried = [each for at in ends if (each := programme.solve(room, at)) is not None]
        found = min(tried, key=lambda each: each.seconds)
        assert found.fullest <= room
        chosen.add(found.ends is not None)
        behind.append(found.seconds / min(each.seconds for each in every if each.fullest <= room))
    assert True in chosen
    assert min(behind) > 1 - 1e-9
    assert max(behind) < 1.03
    assert sum(each < 1 + 1e-9 for each in behind) >= len(behind) / 2


def test_a_change_of_degrees_is_paid_and_one_of_sharding_is_free() -> None:
    it = question(SMALL, "4x2xrtx4090-ethernet", 16, 2048, 4)

    def seconds(one: Grid, other: Grid, rows: int = 4) -> float:
        sizes = (rows * 2 // (grid.dp * grid.fsdp) for grid in (one, other))
        return turn(it, *(Choices.one(g, size) for g, size in zip((one, other), sizes, strict=True)))

    assert seconds(Grid(dp=4), Grid(fsdp=4)) == 0
    near, far = seconds(Grid(dp=2, tp=2), Grid(dp=4)), seconds(Grid(tp=4), Grid(dp=4))
    assert 0 < near < far  # two neighbours of a box, and all of both
    assert seconds(Grid(dp=4), Grid(tp=4)) == pytest.approx(far)
    assert seconds(Grid(tp=4), Grid(dp=4), rows=8) > 1.9 * far


def test_without_a_gain_all_layers_have_one_grid() -> None:
    plenty = question(SMALL, "8xh100", 64, 2048)
    assert not search(plenty, top=1).plans[0].prediction.own


@pytest.fixture(scope="module")
def tight() -> tuple[Question, float]:
    """Where two tensor parts are quicker than four, and hold more than fits for all layers."""
    return question(preset("llama-2-7b"), "8xa100-80", 16, 4096), 44e9


def test_plans_are_never_slower_than_with_one_grid_and_once_faster(tight: tuple[Question, float]) -> None:
    it, most = tight
    gains = []
    for room in (most, 0.8 * most):
        fixed: tuple[dict[str, int | str], ...] = ({"pp": 1}, {"pp": 1, "layers": "alike"})
        own, one = (search(it, room=room, fixed=each, top=1).plans[0].prediction for each in fixed)
        assert not one.own
        assert own.fullest <= room
        gains.append(one.seconds / own.seconds)
    assert min(gains) > 1 - 1e-9
    assert max(gains) > 1.01


def test_a_plan_of_such_layers_is_run_as_it_is(tight: tuple[Question, float], tmp_path: Path) -> None:
    it, room = tight
    found = next(
        each.prediction for each in search(it, fixed={"pp": 1}, room=room, top=9).plans if each.prediction.own
    )
    saved_and_run(it, found, tmp_path)


def test_a_large_vocabulary_is_laid_out_otherwise_and_run_so(tmp_path: Path) -> None:
    """Llama 3 8B where layers have to be sharded: gathering 128,256 words in each micro-batch costs more than
    what it saves."""
    it = question(preset("llama-3-8b"), "8xa100-80", 64, 4096)
    fixed: tuple[dict[str, int | str], ...] = ({"pp": 1}, {"pp": 1, "layers": "alike"})
    own, one = (search(it, room=55e9, fixed=each, top=1).plans[0].prediction for each in fixed)
    assert own.ends is not None
    assert one.ends is None
    assert own.fullest <= 55e9
    assert one.seconds > 1.005 * own.seconds
    saved_and_run(it, own, tmp_path)


def saved_and_run(it: Question, found: Prediction, tmp_path: Path) -> None:
    cluster = files.find("8xa100-80")
    Plan.of(it, cluster, found).save(tmp_path / "plan.yaml")
    plan = Plan.load(tmp_path / "plan.yaml")
    parallel = Parallel.model_validate(plan.parallel())
    assert parallel.own_grids() == {number: own.grid(0) for number, own in sorted(found.own.items())}
    assert parallel.ends_grid == (None if found.ends is None else found.ends.grid(0))
    check_layout(it.spec, parallel, parallel.order(), it.row)
    located = Parallel.model_validate({"plan": str(tmp_path / "plan.yaml")}).located(tmp_path)
    assert located.own_grids() == parallel.own_grids()
    assert located.ends_grid == parallel.ends_grid
    again, choice = asked(plan, cluster)
    told = strategies_of(plan) or [KEEP] * it.spec.num_layers
    same = predict(again, choice, strategies=told, own=own_of(plan), ends=ends_of(plan))
    assert same.seconds == pytest.approx(found.seconds)
    assert same.fullest == pytest.approx(found.fullest)
