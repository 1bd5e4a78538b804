"""What the experiment measures on given logs, and that its arms can run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter.papers import catalogue, galvatron, harness
from shunter.papers.galvatron_padded import PADDED, ROWS, predicted
from shunter.recipe.graph import load_recipe
from shunter.record.events import EventLog

REAL = {name: 0.2 + 0.01 * number for number, name in enumerate(galvatron.LAYOUTS)}  # s a step


@pytest.fixture(scope="module", autouse=True)
def few_budgets() -> Iterator[None]:
    """Searches take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        galvatron.searched.cache_clear()
        patch.setattr(galvatron, "BUDGETS", (38, 18))
        yield
    galvatron.searched.cache_clear()


def trained(folder: Path, seconds: float) -> Any:
    (folder / "log").mkdir(parents=True)
    ledger, log = (EventLog(folder / "log" / f"{name}.jsonl", attempt=1) for name in ("ledger", "events"))
    tokens = galvatron.ROWS * galvatron.LENGTH
    for step in range(6):
        ledger.write(
            "step", step=step, loss=5.0 - step, rows=f"{step}", position=[step, step + 1], grad_norm=1.0
        )
        log.metrics(step, **{"train/tokens_per_second": tokens / (seconds * (3 if step < 3 else 1))})
    if folder.name in galvatron.LAYOUTS:
        counted = galvatron.counted(folder.name)
        log.write("memory", step=5, peak_bytes=[counted // 2, int(1.05 * counted)])
    ledger.close()
    log.close()
    return {"base": SimpleNamespace(path=folder)}


def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str = "") -> list[str]:
    """Claims that do not hold where layouts take what the model says, but for one that takes thrice that."""
    quick = {name: dict(values) for name, values in galvatron.searched().items()}
    quick["each layer, 38 GB"]["search"] = 1.0  # a busy machine takes longer
    monkeypatch.setattr(galvatron, "searched", lambda: quick)
    monkeypatch.setattr(galvatron, "predictions", lambda **_: REAL)  # which would profile this machine
    arms = {galvatron.ALONE: trained(tmp_path / "alone", 1.0)}
    for name in galvatron.LAYOUTS:
        arms[name] = trained(tmp_path / name, REAL[name] * (3 if name == slow else 1))
    for name in PADDED:  # of other batches than `trained` has it
        arms[name] = trained(tmp_path / name, predicted(name).seconds * galvatron.ROWS / ROWS)
    found = galvatron.EXPERIMENT.measure(arms)
    result = harness.conclude(galvatron.EXPERIMENT, dict.fromkeys((0, 1, 2), found), seconds=1.0, short=False)
    assert {row["metric"] for row in result["table"]} == galvatron.EXPERIMENT.table.keys()
    return [claim["name"] for claim in result["claims"] if not claim["holds"]]


def test_on_ideal_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(tmp_path, monkeypatch) == []


def test_a_layout_that_is_not_what_it_was_believed_to_be_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = min(REAL, key=REAL.__getitem__)
    found = fails(tmp_path, monkeypatch, slow=fastest)
    assert found != []
    assert all("two processes" in name or "predicted to be fastest" in name for name in found)


def test_every_arm_is_a_recipe_that_can_run() -> None:
    from shunter.jobs.registry import KINDS

    for short in (False, True):
        for changes in galvatron.EXPERIMENT.arms(0, short).values():
            graph = load_recipe(galvatron.RECIPE, ["seed=0", *changes], KINDS)
            for node in graph.nodes.values():
                node.job.check(node.config, graph.base)
            base = graph.nodes["base"]
            base.job.check_graph(base, graph)  # type: ignore[attr-defined]


def test_what_is_not_recorded_keeps_the_paper_partial() -> None:
    paper = catalogue.find("galvatron")
    assert paper.state == "partial"
    assert not any("redistribution" in lack for lack in paper.lacks)
    assert not [lack for lack in paper.lacks if lack.startswith("test not found")]
