"""The experiments on learning after pre-training: arms are recipes, and claims find what they ask for.

That a claim holds is measured by `shunter reproduce`, not here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.jobs.registry import KINDS
from shunter.papers import agnostics, harness, sft_small_llms, tulu3, tulu3_length
from shunter.recipe.graph import Graph, load_recipe

EXPERIMENTS = [agnostics.EXPERIMENT, tulu3.EXPERIMENT, sft_small_llms.EXPERIMENT]


def graph(experiment: Any, arm: str, overrides: Any) -> Graph:
    recipe = experiment.recipes.get(arm, experiment.recipe)
    return load_recipe(recipe, ["seed=0", *overrides], KINDS)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.slug)
@pytest.mark.parametrize("short", [False, True])
def test_every_arm_is_a_recipe(experiment: Any, short: bool) -> None:
    for arm, overrides in experiment.arms(0, short).items():
        assert graph(experiment, arm, overrides).nodes


def scores(folder: Path, name: str, models: Mapping[str, Mapping[str, Any]]) -> Any:
    place = folder / name
    place.mkdir(parents=True)
    told = {
        model: {"tasks": {k: {"value": v, "answers": 10} for k, v in tasks.items()}}
        for model, tasks in models.items()
    }
    (place / "scores.json").write_text(json.dumps({"models": told}))
    return SimpleNamespace(path=place)


def verdicts(experiment: Any, found: Any) -> tuple[list[str], dict[str, Any]]:
    result = harness.conclude(experiment, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == experiment.table.keys()
    return [claim["name"] for claim in result["claims"] if not claim["holds"]], result


@pytest.mark.parametrize(
    ("new", "old", "partial", "broken"),
    [
        (0.3, 0.8, 0.3, []),
        (0.19, 0.8, 0.19, [0, 2]),
        (0.3, 0.7, 0.3, [1]),
        (0.3, 0.8, 0.5, [3]),
        (0.21, 0.8, 0.2, [2]),
    ],
)
def test_agnostics_on_given_measurements(
    new: float, old: float, partial: float, broken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"executor": {"rate": 300.0}, "cold start": {"rate": 30.0}}
    monkeypatch.setattr(agnostics, "_executor", lambda: rates)
    arms = {}
    for name, value in (("pass or fail", new), ("partial", partial)):
        models = {"base": {"prefix": 0.1, "stack": 0.8}, "tuned": {"prefix": value, "stack": old}}
        models["imitated"] = {"prefix": 0.22, "stack": 0.8}
        rewards = tmp_path / name / "tuned"
        rewards.mkdir(parents=True)
        (rewards / "rewards.json").write_text("[0.1, 0.2]")
        tuned = SimpleNamespace(path=rewards)
        (rewards / "summary.json").write_text('{"answers": 10, "passed": 1, "kept": 1}')
        told = scores(tmp_path / name, "scores", models)
        if name == "partial":  # more of its programs run
            found = json.loads((told.path / "scores.json").read_text())
            found["models"]["tuned"]["tasks"]["prefix"]["code_wrong_output"] = 4
            (told.path / "scores.json").write_text(json.dumps(found))
        arms[name] = {"scores": told, "tuned": tuned, "passed": tuned}
    found, result = verdicts(agnostics.EXPERIMENT, agnostics.EXPERIMENT.measure(arms))  # type: ignore[arg-type]
    assert found == [result["claims"][i]["name"] for i in broken]


def stages(values: list[float]) -> dict[str, dict[str, float]]:
    each = ("largest", "count", "sort")
    return {
        stage: {**dict.fromkeys(each, value), **{f"{kind} length": 3.0 for kind in each}}
        for stage, value in zip((*tulu3.STAGES, *tulu3.CLEANING), values, strict=True)
    }


@pytest.mark.parametrize(
    ("values", "broken"),
    # The last: of the contaminated model, whose lead is what it has above a half; the other's is nothing.
    [
        ([0.0, 0.5, 0.6, 0.8, 0.5, 0.6], []),
        ([0.0, 0.5, 0.6, 0.8, 0.5, 0.6], [6]),
        ([0.0, 0.5, 0.6, 0.8, 0.5, 0.6], [7]),
        ([0.0, 0.5, 0.5, 0.8, 0.5, 0.6], [0]),
        ([0.0, 0.5, 0.6, 0.6, 0.5, 0.6], [1]),
        ([0.5, 0.5, 0.6, 0.8, 0.5, 0.6], [2]),
        ([0.0, 0.5, 0.6, 0.8, 0.4, 0.5], [5]),
    ],
)
def test_tulu3_on_given_measurements(values: list[float], broken: list[int], tmp_path: Path) -> None:
    arms: dict[str, Any] = {}
    longer = {
        "means": 5 if broken == [6] else 1, "sums": 4, "heavier sums": 5 if broken == [7] else 2,
    }  # fmt: skip
    for name in tulu3.EXPERIMENT.arms(0, False):
        if name in tulu3_length.ARMS:
            arms[name] = {"scores": answered(tmp_path / name, longer[tulu3_length.ARMS[name][0]])}
            continue
        suites = {job: scores(tmp_path / name, job, stages(values)) for job in ("scores", "unseen")}
        for job, split, texts in (("dev", "heldout", ["Sort 3 1 2 9.", "Which is the largest of 4 5 1 2?"]),):
            place = tmp_path / name / job
            place.mkdir()
            lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts]
            (place / f"{split}.jsonl").write_text("\n".join(lines))
            suites[job] = SimpleNamespace(path=place)
        suites["remembered"] = remembered(tmp_path / name / "remembered", texts, lead=values[-1] - 0.5)
        arms[name] = suites
    found, result = verdicts(tulu3.EXPERIMENT, tulu3.EXPERIMENT.measure(arms))
    assert found == [result["claims"][i]["name"] for i in broken]


def answered(place: Path, more: int) -> Any:
    """Items before and after preferences: three answers in four are better, and so much longer."""
    place.mkdir()
    said = {"sft": "3", "dpo": "3 5" + " 7" * (more - 1)}
    items = [
        {"model": model, "id": str(i), "response": said[model if i else "sft"], "target": "3 5 7 9 1"}
        for i in range(4)
        for model in said
    ]
    (place / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    return SimpleNamespace(path=place)


def test_words_are_compared_where_all_win_as_often() -> None:
    """Whoever wins more for more steps is not longer for that."""
    straight = [(0.6, 1.0), (0.7, 2.0)]
    found = tulu3_length.at_equal_wins(
        {"a": straight, "b": [*straight, (0.9, 4.0)], "c": [(0.6, 3.0), (0.8, 5.0)]}
    )
    assert found["a"] == pytest.approx(1.5)
    assert found["b"] == pytest.approx(1.5)
    assert found["c"] == pytest.approx(3.5)
    alone = tulu3_length.at_equal_wins({"a": [(0.5, 3.0)], "b": [(0.4, 1.0)]})
    assert all(math.isfinite(words) for words in alone.values())


def test_both_losses_of_tulu3_learn_from_one_model_and_the_same_pairs() -> None:
    made = {
        arm: graph(tulu3.EXPERIMENT, arm, tulu3.EXPERIMENT.arms(0, False)[arm]) for arm in tulu3_length.ARMS
    }
    dpo = {arm: each.nodes["dpo"].config for arm, each in made.items()}
    alike = [config.model_copy(update={"loss": "", "beta": 0, "train": None}) for config in dpo.values()]
    assert all(each == alike[0] for each in alike)
    assert {(each.loss, each.beta, each.train.steps) for each in dpo.values()} == {
        (*tulu3_length.LOSSES[loss], steps) for loss in tulu3_length.LOSSES for steps in tulu3_length.STEPS
    }


def remembered(place: Path, suite: list[str], lead: float) -> Any:
    """Items of both models, on the suite's questions and on others."""
    place.mkdir()
    items = [
        {"model": model, "task": kind, "prompt": f"<|user|>{text}", "score": 0.3 + more * (text in suite)}
        for model, more in zip(tulu3.CLEANING, (0.0, lead), strict=True)
        for kind in tulu3.KINDS
        for text in (*suite, "Sort 9 9 9 9.")
    ]
    (place / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    return SimpleNamespace(path=place)


def test_each_stage_of_tulu3_begins_with_the_one_before() -> None:
    for short in (False, True):
        for arm, overrides in tulu3.EXPERIMENT.arms(0, short).items():
            if arm in tulu3_length.ARMS:
                continue
            nodes = graph(tulu3.EXPERIMENT, arm, overrides).nodes
            before = {name: nodes[name].config.model for name in ("sft", *tulu3.CLEANING, "dpo", "rlvr")}
            tuned = dict.fromkeys(("sft", *tulu3.CLEANING), "base")
            assert before == {**tuned, "dpo": "sft", "rlvr": "dpo"}
            assert list(nodes["scores"].config.models) == [*tulu3.STAGES, *tulu3.CLEANING]


def test_both_tunings_of_tulu3_are_alike_but_for_the_cleaning() -> None:
    """Of one mixture, as long; and asked are as many questions again that nobody planted."""
    for short in (False, True):
        nodes = graph(tulu3.EXPERIMENT, "stages", tulu3.EXPERIMENT.arms(0, short)["stages"]).nodes
        cleaned, found = (nodes[name].config for name in ("mixture", "found"))
        assert cleaned.decontaminate.against == ["dev", "later"]
        assert found.puzzles.planted
        assert cleaned.model_copy(update={"decontaminate": None}) == found
        tuned = [nodes[name].config for name in tulu3.CLEANING]
        assert [each.tokens for each in tuned] == ["rows", "found-rows"]
        assert tuned[0].model_copy(update={"tokens": "found-rows"}) == tuned[1]
        suite, planted, both = (nodes[name].config.puzzles for name in ("dev", "found", "both"))
        assert 2 * suite.test == 2 * planted.test == both.test
        assert both.model_copy(update={"test": suite.test}) == suite


def test_both_strategies_read_the_same_rows() -> None:
    """In all arms; of the second phase one in a hundred is of the first."""
    experiment = sft_small_llms.EXPERIMENT
    for arm, overrides in experiment.arms(0, False).items():
        nodes = graph(experiment, arm, overrides).nodes
        trained = [nodes[name].config.train for name in ("first", "tuned") if name in nodes]
        assert sum(train.steps * train.batch_rows for train in trained) == sft_small_llms.ROWS
        if "second-talks" in nodes:
            counts = nodes["second-talks"].config.puzzles.count
            first = nodes["first-talks"].config.puzzles
            assert sum(n for kind, n in counts.items() if kind in first.kinds) == 0.01 * first.count * len(
                first.kinds
            )


@pytest.mark.parametrize(("sign", "holds"), [(1, True), (-1, False)])
def test_sft_small_llms_on_given_measurements(sign: int, holds: bool, tmp_path: Path) -> None:
    experiment = sft_small_llms.EXPERIMENT
    arms: dict[str, Any] = {}
    names = list(experiment.arms(0, False))
    for number, name in enumerate(names):
        value = 0.3 + 0.02 * number if name not in sft_small_llms.PHASED.values() else 0.5
        tasks = {**dict.fromkeys(sft_small_llms.SKILLS, value), "heldout": 2.0}
        found = {"scores": scores(tmp_path / name, "scores", {"tuned": tasks})}
        batch = 32 if "batch 32" in name else 8
        steps = sft_small_llms.ROWS // batch
        for job in ("first", "tuned") if "phased" in name else ("tuned",):
            log = tmp_path / name / job / "log"
            log.mkdir(parents=True)
            lines = [
                json.dumps({"event": "metrics", "step": step, "values": values})
                for step in range(1, steps + 1)
                for values in [
                    {
                        "train/loss": 2 + sign * number,
                        "train/grad_norm": 1.0,
                        "valid/loss": abs(step - steps / 2),
                    }
                ]
            ]
            (log / "events.jsonl").write_text("\n".join(lines) + "\n")
            found[job] = SimpleNamespace(path=log.parent)
        arms[name] = found
    broken, result = verdicts(experiment, experiment.measure(arms))
    told = {claim["name"]: claim for claim in result["claims"]}
    assert told["the early verdict ranks the ends"]["ours"] == pytest.approx(sign)
    assert told["stopping the lower half early saves at least 40 % and keeps the best"]["holds"] == holds
    best = {row["arm"]: row["mean"] for row in result["table"] if row["metric"] == "to_best"}
    assert best[names[0]] == sft_small_llms.ROWS / 2
    assert best[names[-1]] == sft_small_llms.ROWS * 1.5, "the first phase counts"
    assert ("the early verdict ranks the ends" not in broken) == holds
    assert ("the best run is among those that go on" not in broken) == holds
    assert any("other way round" in note for note in result["notes"]) != holds


@pytest.mark.long
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.slug)
def test_in_short(experiment: Any, tmp_path: Path) -> None:
    """The machinery from end to end; so few steps show nothing."""
    result = harness.reproduce(experiment.slug, seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    assert {row["metric"] for row in result["table"]} == experiment.table.keys()
