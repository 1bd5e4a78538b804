"""The planner is asked what the recipe's job does: precision, compiled layers, optimizer; by every way alike.

What this cannot show: that the practice's numbers are those of the program (tests/jobs/test_planning.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.jobs import planning
from shunter.jobs.automatic import planned
from shunter.jobs.layouts import job_to_lay_out
from shunter.jobs.questions import trained
from shunter.jobs.registry import KINDS
from shunter.layout.grid import Grid
from shunter.plan.anew import asked as asked_anew
from shunter.plan.anew import cluster_of
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import Coefficients, practice
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.recipe.graph import load_recipe
from shunter.train.config import Parallel
from shunter.train.layout_describe import describe
from shunter.train.layout_parts import Plan as Laid

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-short.yaml"
CHANGES = {
    "shunter-fp32+muon": ["train.precision=fp32"],
    "shunter-fp32": ["train.precision=fp32", "train.optimizer=adamw"],
    "shunter": ["train.precision=bf16", "train.optimizer=adamw"],
    "shunter+compiled+muon": ["train.precision=bf16", "how.compile=true"],
}


def recipe(path: Path, changes: list[str]) -> Path:
    """The quickstart's with changes written into it, as `shunter plan --model` takes no overrides."""
    from shunter.config import write, yaml

    data = yaml.load(RECIPE).data
    for change in changes:
        key, _, value = change.partition("=")
        half, name = key.split(".")
        read = {"true": True}.get(value, value)
        data["jobs"]["base"][half] = {**data["jobs"]["base"].get(half, {}), name: read}
    path.write_text(write.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_plan_auto_and_planning_anew_ask_the_same(name: str, tmp_path: Path) -> None:
    cluster = files.find("cpu")
    path = recipe(tmp_path / "recipe.yaml", CHANGES[name])
    asked = planning.ask(str(path), "cpu", None, None, job="base").question
    assert asked.practice == practice(name)
    files.save(cluster.description, tmp_path / "machine.yaml")
    graph = load_recipe(path, ["jobs.base.how.parallel=auto"], KINDS)
    planned(graph, tmp_path / "plans", lambda line: None, tmp_path / "machine.yaml")
    plan = Plan.load(tmp_path / "plans" / f"{graph.name}-base.yaml")
    again, choice = asked_anew(plan, cluster_of(plan))
    assert again == asked
    assert predict(again, choice).seconds == pytest.approx(plan.step_seconds)


def test_auto_precision_is_told(tmp_path: Path) -> None:
    path = str(recipe(tmp_path / "recipe.yaml", []))
    asked = planning.ask(path, "8xh100", None, None, job="base")
    assert asked.question.practice.name == "shunter+muon"
    assert "precision auto, counted as bf16" in asked.notes
    assert planning.ask(path, "cpu", None, None, job="base").question.practice.name == "shunter-fp32+muon"
    given = planning.ask(path, "8xh100", None, None, job="base", practice_name="torchtitan")
    assert given.question.practice.name == "torchtitan"


def test_a_compiled_job_gets_a_plan_that_it_takes(tmp_path: Path) -> None:
    from shunter.plan.search import search

    path = recipe(tmp_path / "recipe.yaml", ["how.compile=true"])
    asked = planning.ask(str(path), "cpu", None, None, job="base")
    found = search(asked.question, fixed={"pp": 2}, top=32)
    assert {plan.prediction.choice.settings(0)["schedule"] for plan in found.plans} <= {
        "1f1b",
        "interleaved-1f1b",
    }


def test_a_model_that_is_not_told() -> None:
    graph = load_recipe(RECIPE, [], KINDS)
    with pytest.raises(ShunterError, match="trains nothing"):
        job_to_lay_out(graph, "corpus")
    with pytest.raises(ShunterError, match="is not told"):
        trained(graph, graph.nodes["corpus"])
    with pytest.raises(ShunterError, match="has no job nothing"):
        planning.model("llama-2-7b", "nothing")


LAYOUTS = [{"fsdp": 8}, {"tp": 8}, {"dp": 8}, {"pp": 2, "tp": 4}, {"dp": 2, "fsdp": 4}, {"pp": 4, "dp": 2}]


@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
def test_muons_state_is_what_the_layout_counts(degrees: dict[str, int]) -> None:
    """On average over a stage's ranks: single ones own more or fewer matrices."""
    where = files.find("8xa100-80")

    def asked(name: str) -> Question:
        return Question(preset("llama-3-8b"), Fabric.of(where), 64, 2048, practice(name), Coefficients())

    question = asked("shunter+muon")
    prediction = predict(question, Choices.one(Grid(**degrees), 2, "1f1b", 1, "none"))
    parallel = Parallel.model_validate(Plan.of(question, where, prediction).parallel()).settled(64, 2)
    ranks = describe(Laid.make(question.spec, parallel, 2048, 64, bf16=True), "muon", {}, []).ranks
    for stage, parts in enumerate(prediction.bytes):
        mine = [rank.optimizer for rank in ranks if rank.place.get("pp", 0) == stage]
        assert parts["optimizer"] == pytest.approx(sum(mine) / len(mine), rel=0.02)
    adam = predict(asked("shunter"), prediction.choice)
    held, more = (sum(parts["optimizer"] for parts in each.bytes) for each in (prediction, adam))
    assert held <= more
    assert prediction.seconds > adam.seconds  # its products are not free
