"""A run follows the ranks of a plan: which process has which rank, an uneven cut, the losses of any order.

Not shown here: that a device which differs does its stage faster; processes of this machine are alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.jobs import automatic
from shunter.jobs.registry import KINDS
from shunter.launch import elastic
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.placing import improved, scored
from shunter.plan.plan import Plan
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.recipe.graph import load_recipe
from shunter.train.config import Parallel
from tests.jobs.conftest import Work
from tests.jobs.test_ranks import MODEL, train
from tests.jobs.test_training_jobs import rows
from tests.plan.uneven import cluster

__all__ = ["rows"]  # a fixture

QUICK_LAST = cluster((1, 1), kinds=("lame", "quick"))


def planned(it: Cluster, grid: Grid, ranks: list[int], path: Path) -> Plan:
    """A plan's file of the model of `train`, with its ranks in another order where that is asked."""
    spec = DecoderSpec(**MODEL, vocab_size=300, max_positions=32)
    asked = Question(spec, Fabric.of(it), 4, 32, PRACTICES["shunter"], Coefficients())
    choice = Choices.one(grid, 1)
    first = scored(asked, choice, asked.fabric.room(None))
    assert first is not None
    (best,) = improved(asked, [first], asked.fabric.room(None))
    plan = replace(Plan.of(asked, it, best), ranks=ranks)
    plan.layout["cut"] = [1] if grid.pp == 2 else []
    plan.save(path)
    return Plan.load(path)


def test_a_process_has_the_rank_that_it_is_told(tmp_path: Path) -> None:
    found = elastic.launch(
        "tests.launch.small_rank", {"ranks": [2, 0, 1]}, 3, tmp_path / "ranks", threads=1, poll=lambda: None
    )
    assert found["seen"]["RANK"] == "2"  # rank 0 answered, which is process 2
    assert found["seen"]["LOCAL_RANK"] == "2"
    # What is told of a process that fails is told of its rank.
    assert [elastic.place_of({"ranks": [2, 0, 1]}, process) for process in range(3)] == [1, 2, 0]
    assert elastic.place_of({}, 2) == 2


def test_a_plan_s_order_of_ranks_and_uneven_cut_train_to_the_same_losses(
    rows: Path, work: Work, tmp_path: Path
) -> None:
    plan = planned(QUICK_LAST, Grid(pp=2), [1, 0], tmp_path / "plan.yaml")
    assert plan.parallel()["ranks"] == [1, 0]
    _, expected = train(work, rows, None, "alone")
    placed, metrics = train(work, rows, {"plan": str(tmp_path / "plan.yaml")}, "placed")
    for name in ("loss", "heldout_loss", "tokens"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name
    assert metrics["account"]["plan"]["ranks"] == [1, 0]
    request = (placed.parent / "private" / "ranks" / "request.json").read_text()
    assert '"ranks": [1, 0]' in request


@pytest.mark.long
def test_any_order_of_four_ranks_trains_to_the_same_losses(rows: Path, work: Work) -> None:
    grid = {"pp": 2, "fsdp": 2, "microbatches": 2, "cut": [1]}
    told = [
        train(work, rows, {**grid, "ranks": order}, f"order{number}")[1]
        for number, order in enumerate((None, [2, 0, 3, 1], [3, 2, 1, 0]))
    ]
    for other in told[1:]:
        for name in ("loss", "heldout_loss"):
            assert other[name] == pytest.approx(told[0][name], rel=1e-6), name


def test_ranks_that_are_no_order_are_refused() -> None:
    for ranks in ([0, 0], [0, 2], [0], [0, 1, 2]):
        with pytest.raises(ValueError, match="each of the 2 processes once"):
            Parallel.model_validate({"pp": 2, "ranks": ranks})


def test_auto_takes_the_order_of_its_plan(tmp_path: Path) -> None:
    it = cluster((1, 1, 1), kinds=("quick", "lame", "quick"))
    files.save(it.description, tmp_path / "here.yaml")
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart-short.yaml"
    graph = load_recipe(recipe, ["jobs.base.how.parallel=auto", "jobs.base.train.batch_rows=12"], KINDS)
    lines: list[str] = []
    changes = automatic.planned(graph, tmp_path, lines.append, tmp_path / "here.yaml")
    changed = load_recipe(recipe, [*changes, "jobs.base.train.batch_rows=12"], KINDS)
    how: Any = changed.nodes["base"].config.how  # type: ignore[attr-defined]
    plan = Plan.load(Path(how.parallel.plan))
    assert sorted(plan.ranks) == [0, 1, 2]
    located = how.parallel.located(graph.base)
    assert located.ranks == (None if plan.ranks == [0, 1, 2] else plan.ranks)
    assert located.cut == (plan.layout["cut"] if plan.layout["pp"] > 1 else None)
