"""mixturevitae: arms drop a part of the mixture and nothing else; the made-up commons is what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from shunter.data import commons
from shunter.data.curation.licences import LicenceTiers
from shunter.jobs.registry import KINDS
from shunter.papers import catalogue, harness
from shunter.papers.mixturevitae import EXPERIMENT, MIXTURES
from shunter.recipe.graph import load_recipe


def test_each_arm_drops_a_part_at_equal_tokens() -> None:
    budgets, trains, weights = set(), set(), {}
    for name, overrides in EXPERIMENT.arms(0, False).items():
        graph = load_recipe(EXPERIMENT.recipe, list(overrides), KINDS)
        mixture, base = graph.nodes["mixture"], graph.nodes["base"]
        budgets.add(mixture.config.budget)
        trains.add(str(base.config.train))
        weights[name] = set(mixture.config.weights)
        assert mixture.inputs["corpora"] == ("whole" if name == "unrestricted web" else "gated",)
    assert len(budgets) == len(trains) == 1
    assert set(weights) == set(MIXTURES)
    assert weights["mixture"] - weights["without problems"] == {"sums"}
    assert weights["mixture"] - weights["without web"] == {"web"}
    paper = catalogue.find("mixturevitae")
    assert (paper.state, list(paper.lacks)) == ("works", [])


def test_the_commons_is_what_it_says() -> None:
    items = list(commons.web(400, 0))
    assert items == list(commons.web(400, 0))
    counts = Counter(item.terms for item in items)
    assert all(0.15 < counts[name] / 400 < 0.6 for name, _ in commons.SHARES)
    assert any(item.copy for item in items)
    gate = LicenceTiers(kind="licence-tiers")
    for item in items:
        assert (gate.tier(item.text, "", "web")[0] < 0) == (item.terms == "free")


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end; so short a training says little of mixtures."""
    result = harness.reproduce("mixturevitae", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    verdicts = {verdict["name"]: verdict["holds"] for verdict in result["claims"]}
    assert verdicts["the licence gate lets through what may be used: precision above 0.98"]
