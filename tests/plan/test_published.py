"""The cost model against published tables: at most two rows of each machine are fitted, the others held out.

What this cannot show: that rows which nobody published are met as well. The form of the coefficient `context`
was chosen with tables 2 and 6 in sight, so its rows are held out from the fit, but not from the choice; so
were the bytes of Megatron's scores and gradients, read off its program when the held-out rows were known. And
Megatron's rows have nearly one rate, so that a constant fitted to the held-out rows themselves is as close.
"""

from __future__ import annotations

import math
import statistics
from functools import cache
from itertools import combinations

import pytest

from shunter.cluster import files
from shunter.plan.calibrate import Account, Run, account, coefficients_of, fit
from shunter.plan.practice import Coefficients
from shunter.plan.score import Prediction, predict
from tests.plan.cases import foundry_runs, megatron_runs, published, titan_runs

TABLES = {
    "megatron": ("8xa100-80", ["products"]),
    "torchtitan": ("grand-teton", ["products", "context"]),
    "h200": ("8xh200", ["products"]),
}


def runs(table: str) -> tuple[list[Run], list[Run]]:
    return megatron_runs() if table == "megatron" else titan_runs(table, TABLES[table][0])


@cache
def predictions(table: str) -> dict[str, tuple[Run, Prediction]]:
    """With the shipped coefficients; those that were fitted first."""
    fitted, held = runs(table)
    coefficients = coefficients_of(files.find(TABLES[table][0]))
    found = {}
    for run in [*fitted, *held]:
        again = Run(run.name, run.asked(coefficients), run.choice, run.seconds)
        found[run.name] = again, predict(again.question, again.choice)
    return found


def held_out(table: str) -> Account:
    rows = [run for run, _ in predictions(table).values()]
    return account(rows[2:], lambda run: predictions(table)[run.name][1].seconds)


def rates(table: str) -> list[float]:
    """FLOP/s of a device as published: of the rows to fit, two, and of the others."""
    every = [run for run, _ in predictions(table).values()]
    return [run.question.flops / run.seconds / run.question.fabric.world for run in every]


def constant(table: str) -> float:
    """Median error of the best constant FLOP/s of the held-out rows, which it is fitted to."""
    held = rates(table)[2:]
    return min(statistics.median(abs(guess / rate - 1) for rate in held) for guess in held)


def carried(table: str) -> float:
    """Median error of a constant that is fitted to the rows to which the model is."""
    fitted, held = rates(table)[:2], rates(table)[2:]
    guess = statistics.geometric_mean(fitted)
    return statistics.median(abs(guess / rate - 1) for rate in held)


def test_megatrons_table_is_met() -> None:
    errors = held_out("megatron")
    assert len(errors.errors) == 8
    assert errors.median <= 0.025
    assert errors.worst <= 0.09
    # Nearer than the best constant; half of its error is not reached.
    assert constant("megatron") / 2 < errors.median < constant("megatron")
    assert errors.median <= carried("megatron") / 2  # of one that knows as little


def test_h200_of_twice_the_nodes_is_met() -> None:
    ((_, _), (run, found)) = predictions("h200").values()
    assert run.seconds / found.seconds == pytest.approx(1, abs=0.03)


def test_torchtitans_tables_are_met() -> None:
    errors = held_out("torchtitan")
    assert len(errors.errors) == 16
    assert errors.median <= 0.07
    assert errors.worst <= 0.16
    assert errors.median <= constant("torchtitan") / 2 < carried("torchtitan") / 2


def test_ratios_between_rows_have_the_right_sign() -> None:
    rate = {name: 1 / each.seconds for name, (_, each) in predictions("torchtitan").items()}
    assert rate["1 eager"] < rate["1 compiled"] < rate["1 float8"]
    assert rate["4"] < rate["4 async"]  # published 1.06
    assert 1.15 < rate["5 interleaved"] / rate["5 1f1b"] < 1.45  # published 1.28
    for table in ("2", "6"):
        times = [1 / rate[f"{table} cp {degree}"] for degree in (1, 2, 4, 8)]
        assert times == sorted(times)  # the same tokens of each GPU, in longer rows


def test_ratios_between_megatrons_rows() -> None:
    told = {row["model"]: row["tflops"] for row in published("megatron")["rows"]}
    found = {
        name: told[name] * run.seconds / each.seconds
        for name, (run, each) in list(predictions("megatron").items())[2:]
    }
    wrong = [(a, b) for a, b in combinations(found, 2) if (told[a] - told[b]) * (found[a] - found[b]) < 0]
    # Of 28 pairs one, whose rates are 1.4 % apart; no rows differ in tensor parallelism alone.
    assert wrong == [("gpt-7.5b", "gpt-76b")]


@pytest.mark.parametrize("kind", ["h100", "a100-80"])
def test_another_program_on_the_same_devices_is_slower_than_predicted(kind: str) -> None:
    """How far one set of coefficients carries: what was fitted to this program on one H100, and to Megatron's
    on A100, against a program of 2023 that shares weights over 8 to 64."""
    coefficients = coefficients_of(files.find(f"8x{kind}"))
    times = sorted(run.seconds / run.predicted(coefficients) for run in foundry_runs(kind))
    middle, most = (1.35, 1.6) if kind == "h100" else (1.15, 1.35)
    assert 1 < statistics.median(times) < middle
    assert 0.95 < times[0] <= times[-1] < most


def test_the_shipped_calibration_is_the_fitted_one() -> None:
    # As many coefficients as rows: both are met. One coefficient for two: as much too fast as too slow.
    for table in ("torchtitan", "h200"):
        for run, found in list(predictions(table).values())[: 2 if table == "torchtitan" else 1]:
            assert found.seconds == pytest.approx(run.seconds, rel=0.005)
    few, many = (
        math.log(found.seconds / run.seconds) for run, found in list(predictions("megatron").values())[:2]
    )
    assert few == pytest.approx(-many, abs=0.01)


@pytest.mark.long
def test_fitting_gives_the_shipped_calibration() -> None:
    for table, (machine, names) in TABLES.items():
        found, shipped = fit(runs(table)[0], names, Coefficients()), coefficients_of(files.find(machine))
        for name in names:
            assert shipped[name] == pytest.approx(found[name], rel=0.01), name


def test_memory_is_near_what_was_published() -> None:
    rows = {row["name"]: row["memory"] for row in published("torchtitan")["rows"]}
    errors = [each.fullest / 2**30 / rows[name] - 1 for name, (_, each) in predictions("torchtitan").items()]
    # Nothing is fitted. What is published is what the allocator has reserved, so it may be more.
    assert statistics.median(map(abs, errors)) <= 0.12
    assert max(map(abs, errors)) <= 0.27
