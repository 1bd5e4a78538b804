"""A plan is data: saved, read again, compared, and refused where it does not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cluster import files
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.config.yaml import Source
from shunter.plan.choices import Question
from shunter.plan.explain import parse as degrees
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.search import search

CLUSTER = files.find("8xa100-80")


def made(fixed: str, practice: str = "shunter") -> Plan:
    asked = Question(preset("llama-2-7b"), Fabric.of(CLUSTER), 64, 2048, PRACTICES[practice], Coefficients())
    found = search(asked, fixed=degrees(fixed), top=1, finalists=2)
    return Plan.of(asked, CLUSTER, found.plans[0].prediction)


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_it_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    plan = made("pp=2,tp=2")
    plan.save(tmp_path / name)
    again = Plan.load(tmp_path / name)
    assert again == plan
    assert again.diff(plan) == {}
    again.must_be_for(preset("llama-2-7b"), CLUSTER)


def test_differences_have_names() -> None:
    found = made("pp=2,tp=2").diff(made("pp=4,tp=2"))
    assert found["layout.pp"] == (2, 4)
    assert "step_seconds" in found


def test_it_is_refused_for_another_model_or_cluster() -> None:
    plan = made("tp=2")
    with pytest.raises(ShunterError, match=r"another model: .*num_layers 32, not 40"):
        plan.must_be_for(preset("llama-2-13b"))
    with pytest.raises(ShunterError, match="for the cluster 8xA100-80 of 8 devices"):
        plan.must_be_for(cluster=files.find("2x8xa100-80"))


def test_a_recipe_takes_its_layout() -> None:
    from shunter.train.config import Parallel

    plan = made("pp=2,tp=2,schedule=interleaved-1f1b,chunks=2")
    data = plan.parallel()
    parallel = parse(Parallel, data, Source(data, "<plan>", None))  # type: ignore[arg-type]
    assert parallel.grid.size == 8
    assert parallel.order().stages == 4
    with pytest.raises(ShunterError, match="recomputes by layer"):
        made("pp=2,tp=4,recompute=layer", "megatron-2021").parallel()


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("format: else\n")
    with pytest.raises(ShunterError, match="this is no plan"):
        Plan.load(path)
    plan = made("tp=8")
    path.write_text(json.dumps({**plan.data(), "version": 99}))
    with pytest.raises(ShunterError, match="version 99"):
        Plan.load(path)
    path.write_text(json.dumps({**plan.data(), "surplus": 1}))
    with pytest.raises(ShunterError, match=r"surplus: .*unknown key"):
        Plan.load(path)
