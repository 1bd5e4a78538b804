"""The search: its space, what it finds, what it says, and how long it takes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.plan.choices import Question
from shunter.plan.estimate import estimate
from shunter.plan.explain import parse, what_would_help, why
from shunter.plan.fabric import Fabric
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.plan.search import Found, search
from shunter.plan.space import ordered_strategies, space


def question(
    model: str = "llama-2-7b", cluster: str = "8xa100-80", batch: int = 64, row: int = 2048
) -> Question:
    fabric = Fabric.of(files.find(cluster))
    return Question(preset(model), fabric, batch, row, PRACTICES["shunter"], Coefficients())


@pytest.fixture(scope="module")
def seven() -> Found:
    return search(question(), top=8)


def test_galvatrons_counts() -> None:
    assert ordered_strategies(8, alone=False) == 34
    assert ordered_strategies(8) == 22
    assert ordered_strategies(8, recompute=True) == 44


def test_the_space_has_every_divisor_and_what_is_fixed() -> None:
    asked = question(cluster="6xa100-80", batch=36)
    found = space(asked, {})
    assert set(found.pp.tolist()) == {1, 2, 3, 6}
    assert {1, 2}.issubset(found.tp.tolist())
    assert np.all(found.pp * found.dp * found.fsdp * found.cp * found.tp == 6)
    some = space(asked, {"tp": 2, "microbatch": 3})
    assert 0 < len(some) < len(found)
    assert set(some.tp.tolist()) == {2}
    assert set(some.rows.tolist()) == {3}


def test_experts_have_axes_of_their_own() -> None:
    found = space(question("mixtral-8x7b"), {})
    assert {1, 2, 4, 8} <= set(found.ep.tolist())
    assert np.all((found.dp * found.fsdp * found.cp * found.tp) % (found.ep * found.etp) == 0)
    assert search(question("mixtral-8x7b", "4x8xa100-80", 64), top=1, finalists=2).plans


def test_nothing_that_was_estimated_as_good_is_better(seven: Found) -> None:
    # A broader look: of each size of a pipeline and tensor degree the best by formula, simulated.
    asked, best = seven.question, seven.plans[0].prediction.seconds
    every = space(asked, {})
    found = estimate(asked, every)
    fits = np.flatnonzero(found.bytes <= seven.room)
    for key in {(int(every.pp[i]), int(every.tp[i])) for i in fits}:
        mine = [i for i in fits if (every.pp[i], every.tp[i]) == key]
        first = min(mine, key=lambda i: found.seconds[i])
        there = predict(asked, every.take([first]), seven.room)
        assert there.fullest > seven.room or there.seconds >= 0.999 * best


def test_plans_are_in_order_and_say_why(seven: Found) -> None:
    seconds = [each.prediction.seconds for each in seven.plans]
    assert seconds == sorted(seconds)
    assert seven.plans[0].lost_because == ""
    assert all(each.lost_because for each in seven.plans[1:])
    for each in seven.plans:
        found = each.prediction
        assert found.compute + found.communication + found.bubble == pytest.approx(found.seconds)
        assert found.fullest <= seven.room


def test_less_memory_changes_the_plan() -> None:
    wide, narrow = (search(question(), room=room, top=1, finalists=8) for room in (None, 38e9))
    assert narrow.plans[0].prediction.fullest <= 38e9 < wide.plans[0].prediction.fullest
    assert narrow.plans[0].prediction.seconds > wide.plans[0].prediction.seconds
    lean = search(question(), objective="memory", top=1, finalists=4).plans[0].prediction
    assert lean.fullest < narrow.plans[0].prediction.fullest


def test_a_model_that_fits_nowhere_says_what_would_do() -> None:
    with pytest.raises(ShunterError, match="fits nowhere") as caught:
        search(question("llama-2-70b"))
    assert "16 devices of this kind would do" in str(caught.value)
    assert search(question("llama-2-70b", "2x8xa100-80"), top=1, finalists=2).plans
    fixed = {"microbatch": 1, "cp": 1, "tp": 1, "pp": 1, "recompute": "none"}
    with pytest.raises(ShunterError, match=r"sequence of \d+ fits"):
        search(question(batch=8, row=131072), fixed=fixed)


def test_conflicting_degrees_are_refused() -> None:
    with pytest.raises(ShunterError, match=r"no layout of 8 devices has tp 3.*\n?.*tp may be 1, 2, 4, 8"):
        search(question(), fixed={"tp": 3})
    with pytest.raises(ShunterError, match="no layout of 8 devices"):
        search(question(), fixed={"tp": 8, "pp": 2})


def test_why_names_the_term(seven: Found) -> None:
    slower = why(seven, parse("pp=2,tp=4"))
    assert "slower" in slower.sentence
    here, best = slower.terms()["seconds"]
    assert here > best
    whole = why(seven, parse("dp=8,recompute=none"))
    assert "does not fit" in whole.sentence
    assert "too much" in whole.sentence
    for text, said in (("tp", "names no value"), ("tq=2", "Did you mean tp"), ("tp=0", "at least 1")):
        with pytest.raises(ShunterError, match=said):
            parse(text)


def test_help_is_never_harm(seven: Found) -> None:
    helped = {each.what: each.times for each in what_would_help(seven)}
    assert helped["products a quarter faster"] > 1.1
    assert all(times > 0.999 for what, times in helped.items())


def test_long_pipelines_are_carried_on_by_their_period(monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter.layout.grid import Grid
    from shunter.plan import score
    from shunter.plan.choices import Choices

    for name, chunks in (("1f1b", 1), ("interleaved-1f1b", 2), ("zb1p", 1), ("zbv", 2)):
        asked = replace(question(), batch=96)
        choice = Choices.one(Grid(pp=4, fsdp=2), 1, name, chunks)
        monkeypatch.setattr(score, "NODES", 10**6)
        whole = predict(asked, choice).seconds
        monkeypatch.setattr(score, "NODES", 200)
        assert predict(asked, choice).seconds == pytest.approx(whole, rel=2e-3), name


def test_it_is_quick() -> None:
    begin = time.process_time()
    search(question())
    assert time.process_time() - begin < 1.0


@pytest.mark.long
def test_a_trillion_parameters_on_3072_devices_take_ten_seconds() -> None:
    asked = question("gpt-1t", "384x8xa100-80", 3072)
    begin = time.process_time()
    found = search(asked)
    assert time.process_time() - begin < 10.0
    assert found.considered > 100_000


def test_the_cheapest_part_of_a_cluster() -> None:
    asked = question(cluster="4x8xa100-80")
    with pytest.raises(ShunterError, match="has no price"):
        search(replace(asked, fabric=replace(asked.fabric, price_per_hour=None)), objective="cost")
    priced = replace(asked, fabric=replace(asked.fabric, price_per_hour=40.0))
    cheap, quick = (search(priced, objective=what, top=1, finalists=4) for what in ("cost", "time"))
    assert cheap.question.fabric.world < quick.question.fabric.world == 32
    assert cheap.question.fabric.price_per_hour == pytest.approx(40 * cheap.question.fabric.world / 32)

    def cost(found: Found) -> float:
        price = found.question.fabric.price_per_hour
        assert price is not None
        return price * found.plans[0].prediction.seconds

    assert cost(cheap) < cost(quick)
    assert cheap.plans[0].prediction.seconds > quick.plans[0].prediction.seconds
