"""A language that is configuration only, learnt by running programs in it (arXiv 2508.04865).

A model that writes programs in one toy language, and has seen few in another, learns the other from inputs
and outputs. Beside it: imitation of what passes of as many of the base's answers, the same training with a
reward for programs that run and print something wrong, and the executor warm and cold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "agnostics.yaml"
PROGRAMS = 24  # of the executor's measure


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = [
        "jobs.base.train.steps=6", "jobs.base.train.warmup=2", "jobs.tuned.train.steps=2",
        "jobs.tuned.train.warmup=1", "jobs.tuned.prompts_per_step=2", "jobs.asked.programs.test=4",
        "jobs.demonstrations.programs.languages={stack: 60, prefix: 10}",
        "jobs.problems.programs.languages={prefix: 20}", "jobs.passed.count=4", "jobs.passed.least=0.0",
        "jobs.imitated.train.steps=2", "jobs.imitated.train.warmup=0",
    ]  # fmt: skip
    size = quick if short else []
    return {"pass or fail": size, "partial": [*size, "jobs.tuned.rewards.0.partial=0.2"]}


def _rejection(arm: Arm) -> Samples:
    """Imitation of what passed of as many answers of the base."""
    told = json.loads((arm["passed"].path / "summary.json").read_text(encoding="utf-8"))
    return {**_scores(arm, "imitated"), "reward": told["kept"] / told["answers"]}


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, Samples] = {"base": _scores(arms["pass or fail"], "base")}
    for name, arm in arms.items():
        found[name] = {**_scores(arm, "tuned"), **_training(arm)}
    found["rejection sampling"] = _rejection(arms["pass or fail"])
    return {**found, **_executor()}


def _scores(arm: Arm, model: str) -> Samples:
    told = json.loads((arm["scores"].path / "scores.json").read_text(encoding="utf-8"))["models"][model][
        "tasks"
    ]
    new, old = told["prefix"], told["stack"]
    ran = new.get("code_pass", 0) + new.get("code_wrong_output", 0)
    return {
        "new": float(new["value"]),
        "old": float(old["value"]),
        "runs": ran / max(1, new["answers"]),
    }


def _training(arm: Arm) -> Samples:
    rewards = json.loads((arm["tuned"].path / "rewards.json").read_text(encoding="utf-8"))
    return {"reward": float(sum(rewards[-5:]) / len(rewards[-5:]))}


def _executor() -> Mapping[str, Samples]:
    """Programs a second, one after the other: forked and shut in, and by starting Python each time."""
    from shunter.post.sandbox.box import Program, Sandbox
    from shunter.post.sandbox.languages import LANGUAGES
    from shunter.post.sandbox.zygote import PRELOADED

    code = "print(sum(map(int, input().split())))"
    with Sandbox(slots=1) as box:
        programs = [Program(LANGUAGES["python"], code, ["1 2"]) for _ in range(PROGRAMS)]
        box.run(programs[:4])
        began = time.perf_counter()
        outputs = {cases[0].output for cases in box.run(programs)}
        warm = time.perf_counter() - began
    imports = "import " + ", ".join(PRELOADED.split()) + "\n"
    command = [sys.executable, "-I", "-S", "-c", imports + code]
    began = time.perf_counter()
    for _ in range(PROGRAMS):
        done = subprocess.run(command, input="1 2", capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    cold = time.perf_counter() - began
    assert outputs == {"3\n"}, outputs
    return {"executor": {"rate": PROGRAMS / warm}, "cold start": {"rate": PROGRAMS / cold}}


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "new, old: pass@1 of two answers at temperature 0.2 to 50 held-out problems in each language.",
        "The new language has no prefix: behind one, so small a model passes nothing.",
        "Rejection sampling imitates what passed of as many answers of the base; its reward is their share.",
        "Languages that people use are not compared.",
    ]


EXPERIMENT = Experiment(
    slug="agnostics",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "new": "pass@1 in the new language",
        "old": "pass@1 in the language of most examples",
        "runs": "share of programs that run, in the new language",
        "reward": "mean of the last five steps, or share that passed",
        "rate": "programs/s",
    },
    notes=_notes,
)
