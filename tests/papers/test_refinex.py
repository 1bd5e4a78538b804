"""refinex: arms differ in what is read and in nothing else; marks are of the right documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.jobs.registry import KINDS
from shunter.papers import catalogue, harness
from shunter.papers.refinex import ARMS, EXPERIMENT, _marked
from shunter.recipe.graph import load_recipe


def test_arms_read_for_equally_long() -> None:
    trains = set()
    for name, overrides in EXPERIMENT.arms(0, False).items():
        graph = load_recipe(EXPERIMENT.recipe, list(overrides), KINDS)
        assert graph.nodes["rows"].inputs["corpus"] == (ARMS[name],)
        trains.add(str(graph.nodes["base"].config.train))
        sizes = {
            str((graph.nodes[job].config.train, getattr(graph.nodes[job].config, "model", None)))
            for job in ("program-base", "rewrite-base")
        }
        assert len(sizes) == 1, "refiner and rewriter are of one size and as many steps"
        assert graph.nodes["refiner"].config.train == graph.nodes["rewriter"].config.train
        # The refiner's lessons are other texts than those that it refines, for every seed that is measured.
        assert graph.nodes["lessons"].config.seed == 77
        assert 77 not in EXPERIMENT.seeds
    assert len(trains) == 1
    paper = catalogue.find("refinex")
    assert (paper.state, paper.lacks) == ("works", ())
    assert "a GPU" in paper.untried[0]


def test_what_is_dropped_counts_as_deleted() -> None:
    web = [
        {"id": "web:0", "text": "menu\nclean text", "noise": "[[0, 5]]"},
        {"id": "web:1", "text": "menu\nmenu", "noise": "[[0, 5], [5, 9]]"},
    ]
    right = _marked(web, {"web:0": "clean text"}, 8)
    assert (right["f1"], right["new"], right["improved"], right["tokens"]) == (1.0, 0.0, 1.0, 4.0)
    assert right["deleted"] == 14 / 24
    raw = _marked(web, {row["id"]: row["text"] for row in web}, 0)
    assert (raw["f1"], raw["improved"]) == (0.0, 0.0)
    assert "tokens" not in raw


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end; so short a training teaches nothing."""
    result = harness.reproduce("refinex", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    verdicts = {verdict["name"]: verdict["holds"] for verdict in result["claims"]}
    assert verdicts["programs invent no word"]
    assert len(verdicts) == 6
