"""The harness: claims are judged from samples by rules that can fail, and say why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.cli import main as cli
from shunter.config.errors import ShunterError
from shunter.papers import catalogue, harness
from shunter.papers.experiment import Experiment
from shunter.papers.statistics import judge, t_interval

NUMBERS = st.lists(st.floats(-100, 100), min_size=3, max_size=6)


@given(NUMBERS)
def test_equal_is_exact(values: list[float]) -> None:
    assert judge("equal", values, values).holds
    other = [*values[:-1], values[-1] + 1e-6]
    assert not judge("equal", values, other).holds


@given(NUMBERS, st.floats(0.5, 50))
def test_greater_needs_the_whole_interval(values: list[float], step: float) -> None:
    assert judge("greater", values, [v + step for v in values]).holds
    assert not judge("greater", values, values).holds
    assert not judge("greater", values, [v - step for v in values]).holds
    assert judge("less", values, [v - step for v in values]).holds


def test_a_noisy_difference_does_not_hold() -> None:
    assert not judge("greater", [1.0, 1.0, 1.0], [1.5, 1.5, 0.9]).holds
    assert not judge("ratio-at-least", [1.0, 1.0, 1.0], [1.0, 3.0, 2.0], threshold=1.5).holds
    assert judge("ratio-at-least", [1.0, 1.0, 1.0], [2.0, 2.01, 1.99], threshold=1.5).holds


def test_nan_never_holds() -> None:
    nan = float("nan")
    for rule in ("equal", "greater", "less"):
        assert not judge(rule, [1.0, 1.0, nan], [1.0, 1.0, nan]).holds  # type: ignore[arg-type]


def test_t_interval_against_a_table() -> None:
    """2, 4, 6: mean 4, standard error 2/sqrt(3), t(2) = 4.303."""
    low, high = t_interval([2.0, 4.0, 6.0])
    assert (low, high) == (pytest.approx(4 - 4.303 * 2 / 3**0.5), pytest.approx(4 + 4.303 * 2 / 3**0.5))


@pytest.mark.parametrize(
    ("text", "complaint"), [("0,1", "at least 3"), ("0,0,1", "at least 3"), ("a,b", "not a list of numbers")]
)
def test_seeds_that_prove_nothing(text: str, complaint: str) -> None:
    with pytest.raises(ShunterError, match=complaint):
        harness.parse_seeds(text)


def fake(deviations: Mapping[str, float]) -> tuple[Experiment, dict[int, Any]]:
    """An experiment with the arms of dmas-llama's claims and samples made up for them."""
    same = {"loss_100": 2.0, "weights": 5.0, "score": 0.5, "samples": 7.0, "final_valid": 2.0}
    arms = ["uninterrupted", "full", "band", "rounding", "no-optimizer", "no-schedule", "no-data", "no-rng"]
    samples = {
        seed: {
            arm: {
                **same,
                **{
                    metric: {"full": 0.0, **deviations}.get(arm, 0.1) + 0.001 * seed
                    for metric in ("deviation", "deviation_first", "to_come_gap", "apart")
                },
                "final_valid": 2.0 + deviations.get(arm, 0.1),
            }
            for arm in arms
        }
        for seed in (0, 1, 2)
    }
    experiment = Experiment(
        slug="dmas-llama",
        recipe=Path(),
        arms=lambda seed, short: {},
        seeds=(0, 1, 2),
        measure=lambda arms: {},
        table={"deviation": "nats/token"},
    )
    return experiment, samples


def test_holds_is_computed_from_all_claims() -> None:
    wide = dict.fromkeys(("no-optimizer", "no-schedule", "no-data", "no-rng"), 0.5)
    result = harness.conclude(*fake(wide), seconds=1.0, short=False)
    assert result["holds"]
    fields = "slug claim baseline ours ratio interval seeds unit holds table seconds notes"
    assert set(fields.split()) <= result.keys()
    assert not harness.conclude(*fake({**wide, "no-data": 0.1}), seconds=1.0, short=False)["holds"]
    experiment, samples = fake(wide)
    samples[2]["full"]["weights"] += 1
    broken = harness.conclude(experiment, samples, seconds=1.0, short=False)
    assert [c["name"] for c in broken["claims"] if not c["holds"]] == [
        "full restore: final weights are the same bits"
    ]
    json.dumps(broken, allow_nan=False)


@pytest.mark.parametrize("path", sorted(catalogue.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_number_can_be_read_in_a_narrow_terminal(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many metrics there are, and where arms measure different things."""
    monkeypatch.setenv("COLUMNS", "80")
    result = json.loads(path.read_text(encoding="utf-8"))
    harness.show(result)
    shown = capsys.readouterr().out.partition("\n claim ")[0]
    assert "\u2026" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    numbers = [number for line in shown.splitlines() for number in line.split()]
    for row in result["table"]:
        assert f"{row['mean']:.4g}" in numbers, row
        assert any(line.startswith(f" {row['arm']} ") for line in shown.splitlines())


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wide = dict.fromkeys(("no-optimizer", "no-schedule", "no-data", "no-rng"), 0.5)
    for deviations, code in ((wide, 0), ({}, 3)):
        result = harness.conclude(*fake(deviations), seconds=1.0, short=False)
        with monkeypatch.context() as patch:
            patch.setattr(harness, "reproduce", lambda *args, _result=result, **kwargs: _result)
            assert cli.main(["reproduce", "dmas-llama", "--json"]) == code
            assert json.loads(capsys.readouterr().out)["holds"] == (code == 0)
            assert cli.main(["reproduce", "dmas-llama"]) == code
            assert "The claim " in capsys.readouterr().out
    assert cli.main(["reproduce", "dmas-lama"]) == 2
    assert "Did you mean 'dmas-llama'?" in capsys.readouterr().err
    assert cli.main(["reproduce", "gnnpipe"]) == 2
    assert "has no experiment yet" in capsys.readouterr().err
    assert cli.main(["reproduce", "dmas-llama", "--short", "--record"]) == 2


def test_states_follow_from_results_tests_and_pages() -> None:
    papers = {paper.slug: paper for paper in catalogue.papers()}
    assert len(papers) == 93
    assert papers["gnnpipe"].state == "missing"
    for paper in papers.values():
        if paper.state == "works":
            assert not paper.lacks
            assert paper.holds is not None
        else:
            assert paper.lacks
    musts: Sequence[Mapping[str, Any]] = catalogue.read_toml("must_haves.toml")["dmas-llama"]["must_have"]
    assert len(musts) == 8
    assert not [
        lack for lack in papers["dmas-llama"].lacks if lack.startswith(("test not found", "untested"))
    ]


def test_a_missing_test_makes_a_paper_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    real = catalogue.read_toml

    def broken(name: str) -> dict[str, Any]:
        table = real(name)
        if name == "must_haves.toml":
            table["dmas-llama"]["must_have"][0]["tests"] = ["tests/train/test_loop.py::test_gone"]
        return table

    monkeypatch.setattr(catalogue, "read_toml", broken)
    paper = catalogue.find("dmas-llama")
    assert paper.state == "partial"
    assert "test not found: tests/train/test_loop.py::test_gone" in paper.lacks


def test_what_the_card_wants_measured_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the card's experiments one is not done: the paper is partial; a GPU's part is told, and no lack."""
    paper = catalogue.find("dmas-llama")
    assert paper.state == "partial"
    assert [lack for lack in paper.lacks if lack.startswith("not measured: quality-filtered")]
    assert [text for text in paper.untried if text.endswith("(needs a GPU)")]
    assert not [lack for lack in paper.lacks if "1.7B" in lack]
    recorded = catalogue.recorded_result("gpipe")
    assert recorded is not None
    fewer = {**recorded, "claims": recorded["claims"][:1]}
    monkeypatch.setattr(catalogue, "recorded_result", lambda slug: fewer)
    assert [lack for lack in catalogue.find("gpipe").lacks if lack.startswith("the recorded result has no")]


def test_claims_of_experiments_exist() -> None:
    claims = catalogue.read_toml("claims.toml")
    for slug, demands in catalogue.read_toml("must_haves.toml").items():
        judged = {claim["name"] for claim in claims[slug]["claims"]}
        for experiment in demands["experiment"]:
            assert set(experiment.get("claims", ())) <= judged


def test_a_result_of_code_that_was_not_committed_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = catalogue.read_toml("claims.toml")["gpipe"]["claims"]
    for doubt in ({"made": {"code": {"dirty": True}}}, {"short": True}):
        clean = {"holds": True, "made": {"code": {"dirty": False}}, "short": False, "claims": claims}
        monkeypatch.setattr(catalogue, "recorded_result", lambda slug, clean=clean: clean)
        assert catalogue.find("gpipe").state == "works"
        monkeypatch.setattr(catalogue, "recorded_result", lambda slug, record={**clean, **doubt}: record)
        assert catalogue.find("gpipe").state == "partial"


def test_claims_name_arms_and_metrics_of_the_experiment() -> None:
    from shunter.papers.dmas_llama import EXPERIMENT

    arms = EXPERIMENT.arms(0, False)
    for claim in catalogue.read_toml("claims.toml")["dmas-llama"]["claims"]:
        assert {claim["baseline"], claim["ours"]} <= arms.keys()
    assert EXPERIMENT.recipe.is_file()


@pytest.mark.long
def test_dmas_llama_in_short(tmp_path: Path) -> None:
    """The machinery with real jobs; whether the claim holds is measured by the full form."""
    result = harness.reproduce("dmas-llama", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    exact = [claim for claim in result["claims"] if claim["name"].startswith("full restore")]
    assert len(exact) == 4
    assert all(claim["holds"] for claim in exact)


def test_an_arm_with_a_store_of_its_own_is_given_what_is_made_alike(tmp_path: Path) -> None:
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store
    from tests.recipe.fakes import KINDS, write

    recipe = write(tmp_path)
    common, own = Store(tmp_path / "common"), Store(tmp_path / "own")
    first = run_graph(load_recipe(recipe, [], KINDS), common, quiet=True)
    graph = load_recipe(recipe, ["jobs.base.how.threads=2"], KINDS)
    for _ in range(2):  # again does no harm
        harness.share(graph, common, own)
    made = run_graph(graph, own, quiet=True)
    linked = {name for name, each in made.items() if (each.path / "manifest.json").stat().st_nlink > 1}
    assert linked
    assert "base" not in linked, "it is computed otherwise there"
    assert {name: each.content for name, each in made.items()} == {
        name: each.content for name, each in first.items()
    }
