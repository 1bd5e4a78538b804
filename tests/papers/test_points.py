"""points: arms are recipes, and the paper says what of it is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.jobs.registry import KINDS
from shunter.papers import catalogue, harness
from shunter.papers.points import ARMS, EXPERIMENT
from shunter.recipe.graph import load_recipe


def test_arms_read_the_corpora_that_they_name() -> None:
    for name, overrides in EXPERIMENT.arms(0, False).items():
        graph = load_recipe(EXPERIMENT.recipe, list(overrides), KINDS)
        assert graph.nodes["rows"].inputs["corpus"] == (ARMS[name],)
    paper = catalogue.find("points")
    assert paper.state == "partial"
    assert any("tiling" in lack for lack in paper.lacks)


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end; so short a training says little."""
    result = harness.reproduce("points", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    assert len(result["claims"]) == 2
