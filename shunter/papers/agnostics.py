"""A language that is configuration only, learnt by running programs in it (arXiv 2508.04865).

A model that writes programs in one toy language, and has seen few in another, learns the other from inputs
and outputs. Beside it: imitation of what passes of as many of the base's answers, the same training with a
reward for programs that run and print something wrong, and the executor warm and cold.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "agnostics.yaml"
ROUNDS, PROGRAMS = 8, 6  # of the executor's measure: both sides take turns, so that other work meets both


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    # Of expressions of two numbers, so that so short a base passes some: claims compare with what it passes.
    quick = [
        "jobs.base.train.steps=90", "jobs.base.train.warmup=5", "jobs.tuned.train.steps=2",
        "jobs.tuned.train.warmup=1", "jobs.tuned.group=4", "jobs.asked.programs.test=4",
        "jobs.demonstrations.programs.languages={stack: 30, prefix: 30}",
        "jobs.demonstrations.programs.test=4", "jobs.demonstrations.programs.length=2",
        "jobs.problems.programs.languages={prefix: 20}", "jobs.problems.programs.length=2",
        "jobs.asked.programs.length=2", "jobs.passed.count=4", "jobs.passed.per_prompt=4",
        "jobs.passed.least=0.0", "jobs.imitated.train.steps=2", "jobs.imitated.train.warmup=0",
    ]  # fmt: skip
    size = quick if short else []
    return {"pass or fail": size, "partial": [*size, "jobs.tuned.rewards.0.partial=0.2"]}


def _rejection(arm: Arm) -> Samples:
    """Imitation of what passed of as many answers of the base."""
    told = json.loads((arm["passed"].path / "summary.json").read_text(encoding="utf-8"))
    return {**_scores(arm, "imitated"), "reward": told["passed"] / told["answers"]}


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
    """Programs a second, one after the other: forked and shut in, and by starting Python each time; of
    rounds in turn, the one in the middle."""
    from shunter.post.sandbox.box import Program, Sandbox
    from shunter.post.sandbox.languages import LANGUAGES
    from shunter.post.sandbox.zygote import PRELOADED

    code = "print(sum(map(int, input().split())))"
    imports = "import " + ", ".join(PRELOADED.split()) + "\n"
    command = [sys.executable, "-I", "-S", "-c", imports + code]
    outputs: set[str] = set()
    with Sandbox(slots=1) as box:

        def warm() -> None:
            programs = [Program(LANGUAGES["python"], code, ["1 2"]) for _ in range(PROGRAMS)]
            outputs.update(cases[0].output for cases in box.run(programs))

        def cold() -> None:
            for _ in range(PROGRAMS):
                done = subprocess.run(command, input="1 2", capture_output=True, text=True, check=True)
                outputs.add(done.stdout)

        seconds: dict[str, list[float]] = {"executor": [], "cold start": []}
        for number in range(ROUNDS + 1):
            for name, side in (("executor", warm), ("cold start", cold)):
                began = time.perf_counter()
                side()
                if number:  # the first one warms caches up
                    seconds[name].append(time.perf_counter() - began)
    assert outputs == {"3\n"}, outputs
    return {name: {"rate": PROGRAMS / statistics.median(found)} for name, found in seconds.items()}


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "new, old: pass@1 of four answers at temperature 0.2 to 100 held-out problems in each language.",
        "The new language has no prefix: behind one, so small a model passes nothing.",
        "Rejection sampling imitates what passed of as many answers of the base; its reward is their share.",
        "Languages that people use are not compared.",
    ]


EXPERIMENT = Experiment(
    slug="agnostics",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2, 3),
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
