"""A plan made once more: its coefficients meet what was measured, and a layout is left for a better one only.

What this cannot show: that coefficients fitted to one layout tell the truth about another.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.plan.anew import Measured, anew, asked, cluster_of
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Question
from shunter.plan.explain import parse
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import practice
from shunter.plan.score import predict
from shunter.plan.search import search

SPEC = DecoderSpec(
    vocab_size=4096, dim=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=1376,
    max_positions=128,
)  # fmt: skip


def plan(fixed: str) -> Plan:
    cluster = files.find("cpu")
    question = Question(SPEC, Fabric.of(cluster), 16, 128, practice("shunter-fp32"), coefficients_of(cluster))
    return Plan.of(
        question, cluster, search(question, fixed=parse(fixed) if fixed else None, top=1).plans[0].prediction
    )


def test_a_plan_remembers_what_it_was_asked() -> None:
    one = plan("pp=2,schedule=1f1b")
    question, choice = asked(one, cluster_of(one))
    assert predict(question, choice).seconds == one.step_seconds
    with pytest.raises(ShunterError, match="does not hold its cluster"):
        cluster_of(replace(one, machine=None))


def test_both_coefficients_meet_what_was_measured() -> None:
    one = plan("dp=2")
    seen = Measured(3 * one.step_seconds, 2 * one.compute_seconds, 5 * one.communication_seconds)
    new = anew(one, seen, "a run").plan
    question, choice = asked(one, cluster_of(one))
    then, _ = asked(new, cluster_of(new))
    found = predict(replace(question, coefficients=then.coefficients), choice)
    assert found.compute == pytest.approx(seen.compute, rel=0.01)
    assert found.communication == pytest.approx(seen.communication, rel=0.01)
    assert new.coefficients["links"]["source"] == "a run"


def test_slow_links_lead_to_a_layout_that_sends_less() -> None:
    one = plan("dp=2")
    seen = Measured(
        one.compute_seconds + 20 * one.communication_seconds,
        one.compute_seconds,
        20 * one.communication_seconds,
    )
    found = anew(one, seen, "a run")
    assert found.changed
    assert found.plan.layout["pp"] == 2
    assert found.plan.step_seconds < seen.seconds


def test_the_best_layout_stays_and_its_prediction_is_the_measurement() -> None:
    best = plan("")
    for seen in (
        Measured(1.3 * best.step_seconds),
        Measured(1.3 * best.step_seconds, 1.3 * best.compute_seconds, 1.3 * best.communication_seconds),
    ):
        found = anew(best, seen, "a run")
        assert not found.changed
        assert found.plan.step_seconds == pytest.approx(seen.seconds)
        assert found.plan.layout == best.layout
