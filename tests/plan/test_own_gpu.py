"""The cost model against what this program itself took on one H100 (bench/results): two rows are fitted, the
others held out.

What this cannot show: anything about several GPUs. The elements that are read and written between products
were counted from shunter.models; that their counts meet the rows was seen before they were called done.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan import compute
from shunter.plan.calibrate import account, coefficients_of, fit
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import PRACTICES, Coefficients
from tests.plan.cases import HERE, OWN_FITTED, Own, own_runs

FITTED = ["products", "grouped"]


@cache
def steps() -> dict[str, Own]:
    return own_runs()


@cache
def shipped() -> Coefficients:
    return coefficients_of(files.find("8xh100"))


def test_steps_that_were_not_fitted_are_met() -> None:
    held = [own.run for name, own in steps().items() if name not in OWN_FITTED]
    assert len(held) == 4  # twice and three times as large a model, compiled, and with documents
    errors = account(held, lambda run: run.predicted(shipped()))
    assert errors.median <= 0.05
    assert errors.worst <= 0.08


def test_the_shipped_calibration_is_the_fitted_one() -> None:
    fitted = [steps()[name].run for name in OWN_FITTED]
    for run in fitted:  # as many coefficients as rows
        assert run.predicted(shipped()) == pytest.approx(run.seconds, rel=0.005)
    found = fit(fitted, FITTED, Coefficients())
    for name in FITTED:
        assert shipped()[name] == pytest.approx(found[name], rel=0.01), name


def test_ratios_have_the_right_sign() -> None:
    rate = {name: own.run.question.tokens / own.run.predicted(shipped()) for name, own in steps().items()}
    assert rate["0.5B-compiled-bf16-rows"] > 1.15 * rate["0.5B-eager-bf16-rows"]  # measured 1.28
    assert rate["0.5B-eager-bf16-rows"] > 2 * rate["1.5B-eager-bf16-rows"]  # measured 2.36
    assert rate["0.5B-eager-bf16-rows"] > rate["8x0.1B-eager-bf16-rows"]  # measured 1.17


def test_memory_is_what_the_allocator_gave_out() -> None:
    for name, own in steps().items():
        (parts,) = own.run.prediction(shipped()).bytes
        # Not of the allocator: the device's context, and what is lost to fragments.
        found = sum(size for part, size in parts.items() if part != "other")
        assert found == pytest.approx(own.bytes, rel=0.10), name
        # A plan has to fit with both.
        assert found + parts["other"] > own.bytes, name


def test_layers_that_were_measured_by_themselves_are_met() -> None:
    """Width 4096, 2048 tokens a row (bench/gpu.py, part megatron): by the shipped coefficients."""
    path = HERE.parents[1] / "bench" / "results" / "gpu.json"
    told = json.loads(path.read_text(encoding="utf-8"))["parts"]["megatron"]["result"]["seconds"]
    spec = DecoderSpec(
        vocab_size=64, dim=4096, num_layers=1, num_heads=32, num_kv_heads=32, head_dim=128, ffn_dim=10912,
        max_positions=2048,
    )  # fmt: skip
    errors = []
    for rows, (forward, backward) in told.items():
        if int(rows) * 2048 <= 2048:
            continue  # on the border of two classes of shapes
        question = Question(
            spec, Fabric.of(files.find("1xh100")), int(rows), 2048, PRACTICES["shunter"], shipped()
        )
        found = compute.layer(question, Choices.one(Grid(), int(rows)), question.fabric.device)
        errors.append(float((found.forward + found.backward)[0]) / (forward + backward) - 1)
    assert len(errors) == 4
    assert float(np.median(np.abs(errors))) <= 0.10
    assert max(map(abs, errors)) <= 0.20
