"""What each layer does with its inside: as little as fits, the cheapest way, and equal to trying everything.

What this cannot show: that copies on a machine are as fast as its file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.plan.choices import Choices, Question
from shunter.plan.estimate import estimate
from shunter.plan.fabric import Fabric
from shunter.plan.memory import put_aside
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.plan.search import search
from shunter.plan.space import space
from shunter.plan.strategies import AGAIN, ASIDE, KEEP, cheapest


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 0, 1, 2]))
def test_it_equals_trying_everything(count: int, seed: int, aside_too: bool, most: int | None) -> None:
    draw = np.random.default_rng(seed)
    again, aside = (list(draw.random(count)) for _ in range(2))
    full, kept = 10.0, float(draw.integers(0, 4))
    first = 3.0 * draw.random()

    def bytes_of(strategies: Sequence[int]) -> float:
        held = sum({KEEP: full, AGAIN: kept, ASIDE: 0.0}[each] for each in strategies)
        travels = 2 * first if ASIDE in strategies else first if AGAIN in strategies else 0.0
        return held + travels

    def seconds(strategies: Sequence[int]) -> float:
        return sum((0.0, again[n], aside[n])[each] for n, each in enumerate(strategies))

    room = float(draw.random() * count * full)
    every = [
        each
        for each in product((KEEP, AGAIN, *((ASIDE,) if aside_too else ())), repeat=count)
        if most is None or each.count(ASIDE) <= most
    ]
    fitting = [each for each in every if bytes_of(each) <= room]
    found = cheapest(again, aside if aside_too else None, room, bytes_of, most)
    assert most is None or found.count(ASIDE) <= most
    if not fitting:
        if most is None:
            assert bytes_of(found) == min(
                bytes_of([each] * count) for each in (AGAIN, *((ASIDE,) * aside_too))
            )
        return
    assert bytes_of(found) <= room
    # Memory is cut into units, rounded up, so that a layer that fits to the last byte may be left out.
    tight = [each for each in fitting if bytes_of(each) <= room * (1 - (count + 1) / 512)]
    if tight:
        assert seconds(found) <= min(map(seconds, tight)) + 1e-9


def question(model: str, cluster: str, batch: int, row: int, practice: str = "shunter") -> Question:
    where = files.find(cluster)
    return Question(preset(model), Fabric.of(where), batch, row, PRACTICES[practice], Coefficients())


def test_no_more_is_computed_again_than_memory_asks_for() -> None:
    asked = question("llama-2-7b", "8xa100-80", 64, 2048)
    choice = Choices.one(Grid(pp=2, tp=4), 1, "1f1b", 1, "layer")
    none, every = (predict(asked, replace_recompute(choice, name)).fullest for name in ("none", "layer"))
    before = 0
    for share in (0.9, 0.6, 0.3):
        room = every + share * (none - every)
        found = predict(asked, choice, room)
        assert found.fullest <= room
        count = len(found.which(AGAIN))
        assert count > before
        before = count
        # One layer less on the fullest rank, and it would not fit.
        stage = max(range(2), key=lambda rank: sum(found.bytes[rank].values()))
        mine = [n for n in found.which(AGAIN) if found.bounds[stage] <= n < found.bounds[stage + 1]]
        less = [KEEP if n == mine[0] else each for n, each in enumerate(found.strategies)]
        assert predict(asked, choice, room, strategies=less).fullest > room
        assert found.seconds < predict(asked, choice).seconds
    assert predict(asked, choice, none * 1.01).which(KEEP) == list(range(32))


def replace_recompute(choice: Choices, name: str) -> Choices:
    from shunter.plan.practice import RECOMPUTE

    return replace(choice, recompute=np.array([RECOMPUTE.index(name)]))


def test_plans_are_never_slower_and_once_faster_than_with_all_layers_alike() -> None:
    gains = []
    for room in (32e9, 25e9, 20e9):
        asked = question("llama-2-7b", "8xa100-80", 64, 2048)
        alike = replace(asked, practice=replace(asked.practice, recompute=("none", "stage")))
        own, same = (search(each, room=room, top=1).plans[0].prediction for each in (asked, alike))
        assert own.fullest <= room
        gains.append(same.seconds / own.seconds)
    assert min(gains) > 1 - 1e-9
    assert max(gains) > 1.03


def test_layers_are_put_aside_where_copies_hide() -> None:
    """Attention grows with the row squared, copies with the row."""
    long, short = question("llama-3-8b", "8xh100", 8, 131072), question("llama-3-8b", "8xh100", 64, 2048)
    choice = Choices.one(Grid(fsdp=8), 1, "1f1b", 1, "layer")
    found = predict(long, choice, 79e9)
    assert found.which(ASIDE)
    bare = long.fabric.device.model_copy(update={"copy_bandwidth": None})
    without = replace(long, fabric=replace(long.fabric, kinds=(bare,)))
    assert not predict(without, choice, 79e9).which(ASIDE)
    room = predict(short, choice).fullest * 1.05
    found = predict(short, choice, room)
    assert found.which(AGAIN)
    assert not found.which(ASIDE)


def test_the_host_has_room_for_what_is_put_aside() -> None:
    long = question("llama-3-8b", "8xh100", 8, 131072)
    choice = Choices.one(Grid(fsdp=8), 1, "1f1b", 1, "layer")
    free = predict(long, choice, 79e9)
    each = float(put_aside(long, choice)[0])
    most = len(free.which(ASIDE)) // 2
    bounded = long.fabric.device.model_copy(update={"host_memory": (most + 0.5) * each})
    short = replace(long, fabric=replace(long.fabric, kinds=(bounded,)))
    found = predict(short, choice, 79e9)
    assert len(found.which(ASIDE)) == most
    assert found.which(AGAIN)
    assert found.seconds > free.seconds
    assert estimate(short, choice, 79e9).seconds[0] >= estimate(long, choice, 79e9).seconds[0]


def test_backwards_in_halves_keep_their_layers() -> None:
    found = space(question("llama-2-7b", "8xa100-80", 64, 2048), {"recompute": "layer", "pp": 4})
    assert set(found.schedule) <= {0, 1, 4}


def test_the_leanest_plan_is_lean() -> None:
    asked = question("llama-2-7b", "8xa100-80", 64, 2048)
    least = search(asked, objective="memory", top=1).plans[0].prediction
    other = search(asked, top=1).plans[0].prediction
    assert least.fullest < 0.6 * other.fullest


def test_nothing_is_ranked_twice() -> None:
    found = search(question("llama-2-7b", "8xa100-80", 64, 2048), top=12)
    layouts = [(each.prediction.choice.grid(0), each.prediction.seconds) for each in found.plans]
    assert len(set(layouts)) == len(layouts)
