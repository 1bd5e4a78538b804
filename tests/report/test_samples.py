"""Answers for people to read: of evaluations, and of a training by rewards at some of its steps."""

from __future__ import annotations

import json
from pathlib import Path

from shunter.report.facts import Facts, JobFacts
from shunter.report.page import render


def test_answers_of_a_training_by_rewards_are_shown_step_by_step(tmp_path: Path) -> None:
    lines = [
        {
            "task": f"step {step}",
            "id": "a",
            "model": "tuned",
            "prompt": "2 + 2?",
            "response": f"says {step}",
            "target": "4",
            "score": 0.0,
        }
        for step in (1, 20, 40)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = JobFacts("tuned", kind="rl", type="model", state="done", path=tmp_path)
    other = JobFacts("base", kind="pretrain", type="model", state="done", path=tmp_path / "nowhere")
    page = render(Facts("run", jobs=[other, trained]))
    assert [page.index(f"says {step}") for step in (1, 20, 40)] == sorted(
        page.index(f"says {step}") for step in (1, 20, 40)
    )
    assert page.index("step 1") < page.index("step 20") < page.index("step 40")
