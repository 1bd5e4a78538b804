"""A recipe that trains by a plan: refused where it does not belong, held to it, and calibrated by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.config.errors import ShunterError
from shunter.jobs import account
from shunter.jobs.registry import KINDS
from shunter.plan.plan import Plan
from shunter.plan.practice import Coefficients
from shunter.recipe.graph import load_recipe
from shunter.record.events import EventLog

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-short.yaml"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "plan.yaml"
    ask = ["plan", "--model", str(RECIPE), "--job", "base", "--cluster", "cpu", "--fix", "pp=2,schedule=1f1b"]
    assert cli.main([*ask, "--out", str(path)]) == 0
    return Plan.load(path)


def test_a_recipe_takes_a_plan(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    graph = load_recipe(RECIPE, [f"jobs.base.how.parallel={{plan: {path}}}"], KINDS)
    node = graph.nodes["base"]
    node.job.check(node.config, graph.base)
    node.job.check_graph(node, graph)  # type: ignore[attr-defined]
    parallel = node.config.how.parallel.located(graph.base)  # type: ignore[attr-defined]
    assert parallel.pp == 2
    assert parallel.cut == plan.layout["cut"]
    assert parallel.microbatches == plan.microbatches
    assert parallel.located(graph.base) == parallel


def test_one_for_another_model_or_batch_is_refused(plan: Plan, tmp_path: Path) -> None:
    use = f"jobs.base.how.parallel={{plan: {tmp_path / 'plan.yaml'}}}"
    for change, said in (
        ("jobs.base.model.ffn_dim=192", "another model: ffn_dim 160, not 192"),
        ("jobs.base.train.batch_rows=16", "for a batch of 8, the recipe has one of 16"),
        ("jobs.rows.row_length=64", "another model: max_positions|for a row of 128"),
    ):
        graph = load_recipe(RECIPE, [use, change], KINDS)
        node = graph.nodes["base"]
        with pytest.raises(ShunterError, match=said):
            node.job.check_graph(node, graph)  # type: ignore[attr-defined]
    both = load_recipe(RECIPE, [f"{use[:-1]}, tp: 2}}"], KINDS).nodes["base"]
    with pytest.raises(ShunterError, match="both plan and tp"):
        both.job.check(both.config, RECIPE.parent)


def logged(plan: Plan, folder: Path, ratio: float) -> Path:
    """The artefact of a run whose steps took `ratio` times what was predicted."""
    (folder / "log").mkdir(parents=True)
    log = EventLog(folder / "log" / "events.jsonl", attempt=1)
    rate = plan.batch * plan.sequence / (plan.step_seconds * ratio)
    for step, factor in enumerate((0.1, 1.0, 0.9, 1.1)):
        log.metrics(step, **{"train/tokens_per_second": rate * factor, "train/memory_mib": 400.0 + step})
    log.close()
    found = account.account(plan, folder / "log" / "events.jsonl")
    (folder / "manifest.json").write_text(json.dumps({"metrics": {"account": found}}))
    return folder


def test_what_was_measured_stands_beside_what_was_predicted(plan: Plan, tmp_path: Path) -> None:
    found = json.loads((logged(plan, tmp_path / "near", 1.05) / "manifest.json").read_text())
    told = found["metrics"]["account"]
    assert told["measured_over_predicted"] == pytest.approx(1.05)
    assert told["memory_bytes"] == 403 * 2**20
    assert "advice" not in told
    far = json.loads((logged(plan, tmp_path / "far", 2.0) / "manifest.json").read_text())
    assert "2.00 times what was predicted" in far["metrics"]["account"]["advice"]


def test_calibration_meets_the_run(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = logged(plan, tmp_path / "run", 2.0), tmp_path / "calibration.yaml"
    assert cli.main(["calibrate", str(folder), "--cluster", "cpu", "--out", str(out)]) == 0
    assert "products: " in capsys.readouterr().out
    ask = ["plan", "--model", str(RECIPE), "--job", "base", "--cluster", "cpu", "--fix", "pp=2,schedule=1f1b"]
    again = tmp_path / "again.yaml"
    assert cli.main([*ask, "--calibration", str(out), "--out", str(again)]) == 0
    new = Plan.load(again)
    assert new.coefficients["products"]["value"] < Coefficients()["products"]
    assert "fitted to" in new.coefficients["products"]["source"]
    same = new if new.microbatches == plan.microbatches else None
    if same is not None:
        assert same.step_seconds == pytest.approx(2 * plan.step_seconds, rel=0.02)
    assert cli.main(["calibrate", str(tmp_path), "--cluster", "cpu"]) == 2
    assert "no account of a plan" in capsys.readouterr().err
    assert cli.main(["calibrate", str(folder), "--cluster", "8xh100"]) == 2
    assert "for the cluster CPU" in capsys.readouterr().err


def test_auto_and_plan_take_the_calibration_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shunter.cluster import files
    from shunter.cluster.description import Measured
    from shunter.jobs.automatic import planned

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = tmp_path / "machine.yaml"
    told = Measured(fingerprint="0", date="2026-11-26", machine="2 x Some CPU")
    files.save(files.find("cpu").description.model_copy(update={"measured": told}), here)
    path = tmp_path / "plan.yaml"
    ask = [
        "plan",
        "--model",
        str(RECIPE),
        "--job",
        "base",
        "--cluster",
        str(here),
        "--fix",
        "pp=2,schedule=1f1b",
    ]
    assert cli.main([*ask, "--out", str(path)]) == 0
    before = Plan.load(path)
    folder = logged(before, tmp_path / "run", 2.0)
    capsys.readouterr()
    assert cli.main(["calibrate", str(folder), "--out", str(tmp_path / "calibration.yaml")]) == 0
    assert "kept for parallel: auto" in capsys.readouterr().out
    assert cli.main([*ask, "--out", str(path), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("fitted to" in note and str(folder) in note for note in notes)
    assert Plan.load(path).step_seconds == pytest.approx(2 * before.step_seconds, rel=0.02)
    said: list[str] = []
    graph = load_recipe(RECIPE, ["jobs.base.how.parallel=auto"], KINDS)
    planned(graph, tmp_path / "plans", said.append, here)
    assert any(line.startswith("calibrated: products") and str(folder) in line for line in said)
    # Another practice is another question: its runs were not seen.
    assert cli.main([*ask, "--practice", "shunter", "--json"]) == 0
    assert not any("fitted to" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_runs_of_two_practices_are_not_mixed(plan: Plan, tmp_path: Path) -> None:
    from dataclasses import replace

    one = logged(plan, tmp_path / "one", 2.0)
    other = logged(replace(plan, practice="shunter"), tmp_path / "other", 2.0)
    assert plan.practice == "shunter-fp32+muon"
    with pytest.raises(ShunterError, match=r"one run is of shunter-fp32\+muon, another of shunter"):
        account.calibrate([one, other], None, tmp_path / "calibration.yaml")
    (one / "manifest.json").write_text(json.dumps({"metrics": {"account": {"step_seconds": 1, "plan": {}}}}))
    with pytest.raises(ShunterError, match="the plan is damaged"):
        account.calibrate([one], None, tmp_path / "calibration.yaml")


@pytest.mark.long
def test_a_run_is_held_to_its_plan(plan: Plan, tmp_path: Path) -> None:
    changes = [f"jobs.base.how.parallel={{plan: {tmp_path / 'plan.yaml'}}}", "jobs.base.how.log_every=5"]
    assert cli.main(["run", str(RECIPE), "--store", str(tmp_path / "store"), "--to", "base", *changes]) == 0
    (manifest,) = [
        json.loads(path.read_text())
        for path in (tmp_path / "store").rglob("manifest.json")
        if "account" in path.read_text()
    ]
    told = manifest["metrics"]["account"]
    assert told["step_seconds"] > 0
    assert told["plan_step_seconds"] == plan.step_seconds


def test_auto_plans_for_a_machine(tmp_path: Path) -> None:
    from shunter.cluster import files
    from shunter.jobs.automatic import planned

    files.save(files.find("cpu").description, tmp_path / "machine.yaml")
    said: list[str] = []
    for text in ("auto", "{plan: auto}"):
        graph = load_recipe(RECIPE, [f"jobs.base.how.parallel={text}"], KINDS)
        changes = planned(graph, tmp_path / "plans", said.append, tmp_path / "machine.yaml")
        assert len(changes) == 1
        again = load_recipe(RECIPE, [f"jobs.base.how.parallel={text}", *changes], KINDS)
        node = again.nodes["base"]
        node.job.check(node.config, again.base)
        node.job.check_graph(node, again)  # type: ignore[attr-defined]
        assert node.config.how.parallel.located(again.base).grid.size == 2  # type: ignore[attr-defined]
    assert "a step is to take" in said[0]
    assert planned(load_recipe(RECIPE, [], KINDS), tmp_path / "none", said.append) == []
