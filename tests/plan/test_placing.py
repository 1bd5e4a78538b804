"""Ranks of a plan are placed: as good as any order where all can be tried, never worse than the file's.

The judge is the event simulation of `plan.sited`, by which the search chooses too: what is shown is that it
finds the best by its own measure, not that a real cluster is as fast.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.plan import placement
from shunter.plan.choices import Choices, Question
from shunter.plan.cuts import cut_alike
from shunter.plan.explain import what_would_help
from shunter.plan.holmes import Arrangement, groups, nic_of
from shunter.plan.placing import STEPS, Ground, improved, scored
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import Prediction, predict
from shunter.plan.search import search
from tests.plan.uneven import NODES, cluster, question

MIXED = cluster(
    kinds=("lame", "quick", "lame", "quick"),
    nics=("roce", "ib", "roce", "ib"),
    links=[(NODES[1], NODES[2], "slow", None)],
)


def by_force(asked: Question, choice: Choices, room: float) -> float:
    """Least seconds of all orders, by events; layers cut by speed."""
    ground = Ground(asked, choice, room)
    every = permutations(range(len(ground.units)))
    found = [ground.predict(ground.order(grid)) for grid in every]
    return min(each.seconds for each in found if each is not None)


def placed(asked: Question, choice: Choices) -> Prediction:
    room = asked.fabric.room(None)
    first = scored(asked, choice, room)
    assert first is not None
    (found,) = improved(asked, [first], room)
    assert found.placed is not None
    return found


@pytest.mark.parametrize(
    "grid", [Grid(pp=2, fsdp=4), Grid(pp=4, fsdp=2), Grid(pp=2, dp=2, tp=2), Grid(fsdp=8), Grid(pp=4, tp=2)]
)
@pytest.mark.parametrize(
    "it",
    [
        MIXED,
        cluster(links=[(NODES[0], NODES[2], "slow", None), (NODES[1], NODES[3], "ethernet", "slow")]),
        cluster(kinds=("small", "quick", "small", "quick")),
    ],
    ids=["mixed", "links", "memory"],
)
def test_no_order_is_better(it: Cluster, grid: Grid) -> None:
    asked = question(it)
    choice = Choices.one(grid, 2)
    found = placed(asked, choice)
    assert found.placed is not None
    assert found.seconds <= by_force(asked, choice, asked.fabric.room(None)) * (1 + 1e-9)
    assert found.seconds <= found.placed.naive
    assert sorted(found.placed.order) == list(range(8))


def test_a_mixed_cluster_is_faster_placed_than_in_the_file_s_order() -> None:
    found = search(question(MIXED), top=3)
    best = found.plans[0].prediction
    assert best.placed is not None
    assert best.placed.order != tuple(range(8))
    naive = math.inf
    for each in found.plans:  # of no layout is the file's order as good as the best placed one
        assert each.prediction.placed is not None
        naive = min(naive, each.prediction.placed.naive)
    assert best.seconds < 0.9 * naive
    counts = [end - begin for begin, end in pairwise(best.bounds)]
    speeds = [
        min(MIXED.devices[rank].kind for rank in best.placed.order[at : at + 8 // len(counts)])
        for at in range(0, 8, 8 // len(counts))
    ]
    assert len(set(speeds)) == 2  # stages are of one kind each
    slow, fast = (
        max(n for n, kind in zip(counts, speeds, strict=True) if kind == name) for name in ("lame", "quick")
    )
    assert slow < fast


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(5, 5), (6, 3), (7, 7), (6, 2)]))
def test_the_formula_s_best_is_that_of_all_orders(seed: int, size: tuple[int, int]) -> None:
    import random

    count, pp = size
    draw = random.Random(seed)
    names = [f"n{number}.0" for number in range(count)]
    links = [
        (a, b, draw.choice(["ib", "roce", "ethernet", "slow"]), draw.choice([None, "slow"]))
        for a, b in combinations(names, 2)
    ]
    kinds = [draw.choice(["quick", "lame"]) for _ in names]
    asked = question(cluster([1] * count, kinds, links=links), batch=4 * count)
    ground = Ground(asked, Choices.one(Grid(pp=pp, fsdp=count // pp), 1), 80e9)
    best = placement.try_all(ground.value, count)
    _, grid = next(iter(ground.orders(careful=True)))
    assert ground.value(grid) == pytest.approx(best.value, rel=1e-12)
    annealed = placement.anneal(ground.value, count, steps=STEPS)
    assert annealed.value == pytest.approx(best.value, rel=1e-9)


def test_more_units_are_annealed_and_few_of_one_kind_are_proven() -> None:
    pytest.importorskip("ortools", reason="the extra `solve` is not installed")
    names = [f"n{number}.0" for number in range(8)]
    near = {frozenset(names[at] for at in pair) for pair in ((0, 5), (5, 2), (2, 7), (1, 3), (3, 6), (6, 4))}
    links = [(a, b, "ib" if {a, b} in near else "ethernet", None) for a, b in combinations(names, 2)]
    asked = question(cluster([1] * 8, links=links))
    found = placed(asked, Choices.one(Grid(pp=4, fsdp=2), 2))
    assert found.placed is not None
    assert "proven" in found.placed.how
    assert found.seconds < 0.8 * found.placed.naive
    again = placed(asked, Choices.one(Grid(pp=4, fsdp=2), 2))
    assert again == found


def test_data_groups_keep_to_one_type_of_nic() -> None:
    it = cluster(nics=("roce", "ib", "roce", "ib"))
    asked = question(it, batch=8)  # with many rows, activations weigh more than gradients
    found = placed(asked, Choices.one(Grid(pp=2, fsdp=4), 2))
    assert found.placed is not None
    types = tuple(frozenset(nic_of(it, rank) for rank in found.placed.order[at : at + 4]) for at in (0, 4))
    arrangement = Arrangement(2, 4, 1, found.placed.order, types)
    assert not arrangement.mixed
    for group in groups(it, arrangement, data=1e9, pipeline=1e6):
        assert group.axis == "pipeline" or group.nic != "sockets"
    assert found.placed.naive > 1.3 * found.seconds


def bottleneck(bounds: list[int], seconds: list[float], besides: list[float]) -> float:
    return max(
        extra + (end - begin) * each
        for (begin, end), each, extra in zip(pairwise(bounds), seconds, besides, strict=True)
    )


@given(st.data())
def test_a_cut_is_the_best_of_all_cuts(data: st.DataObject) -> None:
    layers, stages = data.draw(st.integers(3, 9)), data.draw(st.integers(1, 4))
    stages = min(stages, layers)
    times = st.floats(0.1, 3.0)
    seconds = data.draw(st.lists(times, min_size=stages, max_size=stages))
    besides = data.draw(st.lists(st.floats(0, 2), min_size=stages, max_size=stages))
    most = data.draw(st.lists(st.integers(1, layers), min_size=stages, max_size=stages))
    every = [[0, *inner, layers] for inner in combinations(range(1, layers), stages - 1)]
    sound = [
        bounds
        for bounds in every
        if all(end - begin <= top for (begin, end), top in zip(pairwise(bounds), most, strict=True))
    ]
    if not sound:
        with pytest.raises(ShunterError, match=f"memory for {sum(most)} of {layers} layers"):
            cut_alike(layers, seconds, besides, most)
        return
    found = cut_alike(layers, seconds, besides, most)
    assert found in sound
    best = min(bottleneck(bounds, seconds, besides) for bounds in sound)
    assert bottleneck(found, seconds, besides) == pytest.approx(best)


@pytest.mark.parametrize(
    ("schedule", "batch", "kinds"),
    [("1f1b", 3, ("lame", "quick", "quick")), ("zb1p", 6, ("quick", "lame", "quick"))],
)
def test_the_cut_of_a_plan_is_the_best_of_all_by_events(
    schedule: str, batch: int, kinds: tuple[str, ...]
) -> None:
    """With few micro-batches, where evenness alone is not the best."""
    asked = question(cluster((1, 1, 1), kinds=kinds), batch=batch)
    found = placed(asked, Choices.one(Grid(pp=3), 1, schedule))
    assert found.placed is not None
    ground = Ground(asked, found.choice, 80e9)
    every = (ground.predict(found.placed.order, (0, a, b, 12)) for a, b in combinations(range(1, 12), 2))
    assert found.seconds == pytest.approx(min(each.seconds for each in every if each is not None), rel=1e-9)
    even = ground.predict(found.placed.order)
    assert even is not None
    assert found.seconds < even.seconds


def test_each_stage_fits_the_devices_it_is_on() -> None:
    it = cluster(kinds=("small", "quick", "small", "quick"))
    asked = question(
        it, spec=preset("llama-2-7b").model_copy(update={"num_layers": 16, "max_positions": 1024})
    )
    found = search(asked, top=4, finalists=8)
    for each in found.plans:
        prediction = each.prediction
        assert prediction.placed is not None
        stages = len(prediction.bytes)
        for stage, parts in enumerate(prediction.bytes):
            ranks = prediction.placed.order[stage * 8 // stages : (stage + 1) * 8 // stages]
            assert sum(parts.values()) <= min(it.devices[rank].spec.memory for rank in ranks)
    # Held to the smallest device, an even cut would not do.
    best = found.plans[0].prediction
    assert best.fullest > 12e9
    budget = search(asked, room=40e9, top=1, finalists=8).plans[0].prediction
    assert budget.fullest <= 40e9


def test_nodes_of_different_sizes_are_planned_for() -> None:
    asked = question(cluster((2, 4, 2), kinds=("lame", "quick", "lame")))
    best = search(asked, top=1, finalists=8).plans[0].prediction
    assert best.placed is not None
    assert asked.fabric.block == 2
    # Nodes of 4 and 3: with 7 devices there is little to choose, so one is left out.
    odd = search(question(cluster((4, 3))), top=1, finalists=8)
    assert odd.question.fabric.world == 6
    assert odd.question.fabric.terrain is not None
    assert "n1.0/2" not in {device.name for device in odd.question.fabric.terrain.cluster.devices}
    with pytest.raises(ShunterError, match="fits nowhere"):
        search(question(cluster((1, 2), kinds=("small", "small")), spec=preset("llama-2-70b")))


def test_equal_nodes_are_planned_as_ever() -> None:
    asked = Question(
        preset("llama-2-7b"),
        question(files.find("2x8xa100-80")).fabric, 64, 2048, PRACTICES["shunter"], Coefficients(),
    )  # fmt: skip
    found = search(asked, top=2, finalists=4)
    assert all(each.prediction.placed is None for each in found.plans)
    for each in found.plans:
        assert predict(asked, each.prediction.choice, found.room) == each.prediction
    # Placed in the order of ranks, with each pair's own link, it takes as long.
    from shunter.plan.terrain import Terrain

    fabric = replace(asked.fabric, terrain=Terrain(files.find("2x8xa100-80")))
    ground = Ground(replace(asked, fabric=fabric), found.plans[0].prediction.choice, found.room)
    there = ground.predict(tuple(range(16)))
    assert there is not None
    assert there.seconds == pytest.approx(found.plans[0].prediction.seconds, rel=0.02)


def test_what_helps_names_the_links() -> None:
    found = search(question(MIXED), top=1, finalists=6)
    helped = {each.what: each.times for each in what_would_help(found)}
    assert {
        "links ethernet twice as fast",
        "links nvlink twice as fast",
        "half as much memory again",
    } <= helped.keys()
    assert all(times > 0.999 for times in helped.values())
    assert helped["links ethernet twice as fast"] > 1.05
    assert helped["products a quarter faster"] > 1.0


def test_each_kind_of_device_has_its_coefficients() -> None:
    known = Coefficients()
    both = replace(known, kinds={"lame": {**known.known, **known.but("x", products=0.5).known}})
    base = question(MIXED)
    choice = Choices.one(Grid(pp=2, fsdp=4), 2)
    plain, slower = (placed(replace(base, coefficients=c), choice) for c in (known, both))
    assert slower.seconds > 1.02 * plain.seconds
    assert both.but("y", products=2.0).on("lame")["products"] == 1.0
    assert both.on("quick")["products"] == 1.0
