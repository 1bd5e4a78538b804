"""A plan beside what was measured: the figures, the ranks, and what became of it; damaged files are told."""

import json

import pytest

from shunter.recipe.diff import _headline
from shunter.record.split import Call, Rank, split
from shunter.report import plans
from shunter.report.facts import JobFacts
from tests.report.test_page import EVIL, Page, page_of

ACCOUNT = {
    "plan_step_seconds": 0.2,
    "step_seconds": 0.25,
    "plan_compute_seconds": 0.1,
    "compute_seconds": 0.15,
    "plan_communication_seconds": 0.0,
    "communication_seconds": 0.02,
    "plan_memory_bytes": 1 << 30,
    "memory_bytes": 1 << 29,
    "watched_step": 2,
    "ranks": [
        {"rank": 0, "compute": 0.15, "communication": 0.02, "waiting": 0.03, "peak_bytes": 950,
         "plan_peak_bytes": 900, "sent_bytes": 10, "plan_sent_bytes": 12},
        {"rank": 1, "compute": 0.1, "communication": 0.02, "waiting": 0.08},
    ],
    "advice": "plan again",
}  # fmt: skip


@pytest.fixture
def log(store):
    return store.artefacts["base"].path / "log"


def account(store, told):
    artefact = store.artefacts["base"]
    artefact.manifest.metrics["account"] = told
    (artefact.path / "manifest.json").write_text(artefact.manifest.model_dump_json())


def wrote(log, *told):
    with (log / "events.jsonl").open("a") as file:
        file.writelines(json.dumps({"t": 1, "attempt": 1, **each}) + "\n" for each in told)


def test_predicted_and_measured_stand_side_by_side(store, log):
    account(store, ACCOUNT)
    wrote(
        log,
        {"event": "drift", "step": 30, "measured": 0.5, "predicted": 0.2, "ratio": 2.5},
        {"event": "replan", "step": 30, "was": "pp 2", "is": "dp 2", "why": "a step is to take 0.3 s"},
    )
    ranks = [Rank(0, 1, (Call("collective", "g", 0, 0.5, 0.8),)), Rank(0, 1, ())]
    split(ranks)[1].save(log / "timeline-ranks.json")
    html, facts = page_of(store)
    assert facts.problems == []
    assert "plans" in Page(html).sections()
    for text in (
        "200 ms", "250 ms", "+25.0 %", "1 GiB", "512 MiB", "\u221250.0 %", "950 B", "900 B", "in step 2",
        "Plan again.", "At step 30 a step took 500 ms, 2.50 times the 200 ms of the plan.",
        "Planned anew at step 30: from pp 2 to dp 2; a step is to take 0.3 s.", 'class="part-communication"',
    ):  # fmt: skip
        assert text in html, text


def test_a_run_without_a_plan_has_no_section(store):
    html, _ = page_of(store)
    assert "plans" not in Page(html).sections()


def test_a_layout_written_by_hand_is_predicted_and_its_plan_is_not_spread_out(store):
    told = {**ACCOUNT, "basis": "as shunter probe measured it", "plan": {"machine": {"name": "SECRET-SIZE"}}}
    account(store, told)
    html, _ = page_of(store)
    assert "the layout as it was written is predicted, on this machine as shunter probe measured it" in html
    assert "SECRET-SIZE" not in html
    account(store, {"unpredicted": f"nothing describes it {EVIL}"})
    html, _ = page_of(store)
    assert "Not predicted: nothing describes it" in html
    assert EVIL not in html
    assert _headline({"loss": 1.0, "account": told}) == {
        "loss": 1.0, "step seconds": 0.25, "step seconds predicted": 0.2,
    }  # fmt: skip


def test_what_is_damaged_is_told_and_what_is_evil_escaped(store, log):
    account(store, {"plan_step_seconds": "?", "ranks": [3], "advice": EVIL})
    wrote(log, {"event": "replan", "step": 1, "was": EVIL, "why": EVIL}, {"event": "drift", "ratio": "x"})
    (log / "timeline-ranks.json").write_text("{}")
    html, facts = page_of(store)
    assert any("timeline-ranks.json cannot be read" in problem for problem in facts.problems)
    assert EVIL not in html
    assert plans.describe_plans([JobFacts("none")], []) == []
