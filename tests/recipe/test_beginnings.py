"""Variants of a sweep that are stopped by their beginnings, go on later, and are what they would have been.

With stand-ins for trainings, whose score is what the test says; that the score of the paper says anything of
how a run ends is what its experiment measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shunter.config.errors import ShunterError
from shunter.recipe import dryrun
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import load_recipe
from shunter.recipe.job import JobContext, Pace
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from shunter.record import events
from tests.recipe.fakes import KINDS, Train, TrainConfig, write

RECIPE = """\
version: 1
name: sweep
jobs:
  corpus: {{kind: source, text: hello}}
  tuned:
    kind: judged
    text: corpus
    steps: 20
    matrix: {{lr: [0.1, 0.2, 0.3, 0.4]}}
    stop_early: {early}
  again: {{kind: train, text: corpus, start: tuned, steps: 1}}
  scores: {{kind: score, models: [tuned]}}
  both: {{kind: score, models: [again]}}
"""


class Judged(Train):
    """Lower rates score higher, if their logs say so: the mean of the loss of what is told times the rate."""

    kind: ClassVar[str] = "judged"
    compared: ClassVar[frozenset[str]] = frozenset({"lr", "steps"})
    asked: ClassVar[list[dict[str, list[int]]]] = []
    fail_at: ClassVar[int | None] = None

    def run(self, context: JobContext[TrainConfig]) -> dict[str, Any]:
        found = super().run(context)
        return {**found, "name": context.name}

    def pace(self, config: TrainConfig) -> Pace:
        return Pace(config.steps, 2, config.how.threads)  # threads stand for log_every

    def judge(
        self, logs: Mapping[str, tuple[Path, int]], samples: int, share: float, tolerance: float
    ) -> tuple[Mapping[str, float], set[str]]:
        steps = {
            name: [int(row["step"]) for row in events.read_metrics(path) if row["step"] * batch <= samples]
            for name, (path, batch) in logs.items()
        }
        self.asked.append(steps)
        found = {name: 1.0 - float(name.split("lr=")[1].rstrip("]").split(",")[0]) for name in logs}
        order = sorted(found, key=found.__getitem__)
        return found, set(order[: int(share * len(order))])


KNOWN = {**KINDS, "judged": Judged()}


def run(folder: Path, early: str = "{after: 0.25}", recipe: str = RECIPE, **more: Any) -> dict[str, Artefact]:
    Judged.asked.clear()
    graph = load_recipe(write(folder, recipe.format(early=early)), [], KNOWN)
    return run_graph(graph, Store(folder / "store"), quiet=True, **more)


def of(made: Mapping[str, Artefact], stem: str) -> set[str]:
    return {name for name in made if name.split("[")[0] == stem}


def test_the_worst_are_not_gone_on_with_and_the_rest_is_as_without(tmp_path: Path) -> None:
    whole, made = run(tmp_path / "whole", "null"), run(tmp_path)
    good = {"tuned[lr=0.1]", "tuned[lr=0.2]"}
    assert len(of(whole, "tuned")) == 4
    assert of(made, "tuned") == good
    assert {made[name].content for name in good} == {whole[name].content for name in good}
    assert of(made, "again") == {"again[lr=0.1]", "again[lr=0.2]"}, "nothing is made of what is not there"
    assert made["scores"].manifest.metrics["models"] == 2, "what gathers takes what is left"
    assert {record.name for record in made["scores"].manifest.inputs} == good
    assert made["both"].manifest.metrics["models"] == 2
    # 10 of 40 samples, two a step: all were seen to the fifth step and no farther when the verdict was made.
    (asked,) = Judged.asked
    assert asked == {f"tuned[lr=0.{n}]": [1, 2, 3, 4, 5] for n in (1, 2, 3, 4)}
    record = Store(tmp_path / "store").run(tmp_path / "recipe.yaml").data
    assert record["early"][0]["samples"] == 10
    assert record["early"][0]["stopped"] == ["tuned[lr=0.3]", "tuned[lr=0.4]"]
    states = {name: entry["state"] for name, entry in record["jobs"].items()}
    assert states["tuned[lr=0.4]"] == "stopped"
    assert states["again[lr=0.4]"] == "left out"
    assert states["scores"] == "done"


def test_those_that_were_stopped_go_on_where_they_were(tmp_path: Path) -> None:
    run(tmp_path)
    made = run(tmp_path, "null")
    first = {name: made[name].manifest.metrics["first"] for name in of(made, "tuned")}
    assert first["tuned[lr=0.3]"] == first["tuned[lr=0.4]"] == 5
    assert made["scores"].manifest.metrics["models"] == 4
    assert of(made, "again") == {f"again[lr=0.{n}]" for n in (1, 2, 3, 4)}


def test_the_same_command_gives_the_same_verdict_and_begins_nothing_twice(tmp_path: Path) -> None:
    made, again = run(tmp_path), run(tmp_path)
    assert {name: artefact.id for name, artefact in made.items()} == {n: a.id for n, a in again.items()}
    work = tmp_path / "store"
    begun = [log for log in work.rglob("attempts.jsonl") if "lr=0.4" in str(log)]
    assert len(begun) == 1
    assert len(begun[0].read_text().splitlines()) == 1, "what was begun is judged by its log"


def test_a_run_that_breaks_off_in_its_beginning_is_judged_when_all_have_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Judged.run

    def broken(self: Judged, context: JobContext[TrainConfig]) -> dict[str, Any]:
        if context.config.lr == 0.3:
            raise ShunterError("broken")
        return plain(self, context)

    monkeypatch.setattr(Judged, "run", broken)
    with pytest.raises(ShunterError, match="broken"):
        run(tmp_path)
    assert not Judged.asked
    monkeypatch.setattr(Judged, "run", plain)
    assert of(run(tmp_path), "tuned") == {"tuned[lr=0.1]", "tuned[lr=0.2]"}


def test_what_is_finished_is_not_thrown_away(tmp_path: Path) -> None:
    run(tmp_path, "null", last="tuned[lr=0.4]")
    made = run(tmp_path)
    assert of(made, "tuned") == {f"tuned[lr=0.{n}]" for n in (1, 2, 4)}


def test_variants_of_other_data_are_judged_among_themselves(tmp_path: Path) -> None:
    recipe = RECIPE.replace("text: hello}}", "matrix: {{text: [a, b]}}}}").replace(
        "matrix: {{lr: [0.1, 0.2, ", "matrix: {{lr: ["
    )
    made = run(tmp_path, recipe=recipe)
    assert len(Judged.asked) == 2
    assert of(made, "tuned") == {f"tuned[text={text},lr=0.3]" for text in "ab"}


@pytest.mark.parametrize(
    ("early", "change", "says"),
    [
        ("{afte: 0.1}", ("", ""), "after"),
        ("{after: 2}", ("", ""), "less than 1"),
        ("true", ("", ""), "stop_early"),
        ("{}", ("    matrix: {{lr: [0.1, 0.2, 0.3, 0.4]}}\n", ""), "no matrix"),
        ("{}", ("[0.1, 0.2, 0.3, 0.4]", "[0.1]"), "none to be compared with"),
        (
            "{}",
            ("matrix: {{lr: [0.1, 0.2, 0.3, 0.4]}}", "matrix: {{text: [corpus, other]}}"),
            "differ in text",
        ),
        ("{}", ("kind: judged", "kind: train"), "say nothing of their ends"),
        ("{}", ("steps: 20", "steps: 20\n    how: {{threads: 3}}"), "logs its first line after 6"),
    ],
)
def test_sweeps_that_cannot_be_judged(tmp_path: Path, early: str, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ShunterError) as caught:
        run(tmp_path, early, RECIPE.replace(*change) if change[0] else RECIPE)
    assert says in str(caught.value)
    assert "recipe.yaml:" in str(caught.value)


def test_what_would_be_stopped_is_told_beforehand(tmp_path: Path) -> None:
    graph = load_recipe(write(tmp_path, RECIPE.format(early="{after: 0.25}")), [], KNOWN)
    told = dryrun.show(graph, Store(tmp_path / "store"), None, None, [])
    assert "tuned: 50% of the variants are to be stopped after 25% of the samples" in told
