"""What preferences do to the length of answers, by means over tokens and by sums (arXiv 2411.15124).

Both losses begin with one model and learn from the same pairs, for several numbers of steps: one lengthens
answers less than another where it does so for as many wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shunter.papers.experiment import Arm, Samples
from shunter.post.verifiers import f1

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "tulu3-length.yaml"
# The papers' betas; and one by which a pair of answers of eight tokens weighs as much in sums as in means.
LOSSES = {"means": ("dpo_norm", 5.0), "sums": ("dpo", 0.1), "heavier sums": ("dpo", 0.6)}
STEPS = (10, 20, 40, 80)
ARMS = {f"{loss}, {steps} steps": (loss, steps) for loss in LOSSES for steps in STEPS}
TABLE = {"growth": "words more at equal wins", "wins": "share of questions", "words": "words more"}
NOTES = (
    "wins, words: of another kind of question, with answers of any length, how many have a better answer "
    "than before preferences, half of those with as good a one included; and how many words more it has.",
    "growth: words more where all losses win as often: by lines between steps, the mean over those wins.",
)


def overrides(short: bool) -> Mapping[str, Sequence[str]]:
    """What makes each arm of the recipe."""
    few = [
        "jobs.base.train.steps=20", "jobs.sft.train.steps=20", "jobs.pairs.sampled.count=60",
        *(f"jobs.{job}.puzzles.test=20" for job in ("mixture", "prompts")), "jobs.dpo.train.warmup=0",
    ]  # fmt: skip
    found = {}
    for arm, (name, steps) in ARMS.items():
        loss, beta = LOSSES[name]
        of = [f"jobs.dpo.loss={loss}", f"jobs.dpo.beta={beta}"]
        found[arm] = [*of, *(few if short else []), f"jobs.dpo.train.steps={steps // 10 if short else steps}"]
    return found


def measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    """Of each arm wins and words, of each loss the words more at equal wins."""
    points = {arm: _against_before(arms[arm]) for arm in ARMS}
    curves = {loss: [points[arm] for arm, (name, _) in ARMS.items() if name == loss] for loss in LOSSES}
    found: dict[str, Samples] = {loss: {"growth": growth} for loss, growth in at_equal_wins(curves).items()}
    return {**found, **{arm: {"wins": wins, "words": words} for arm, (wins, words) in points.items()}}


def _against_before(arm: Arm) -> tuple[float, float]:
    """The share of questions that are answered better than by the model before, half of those as good
    included, and how many words more an answer has, on average."""
    answers: dict[str, dict[str, Any]] = {}
    for line in (arm["scores"].path / "items.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        answers.setdefault(item["id"], {})[item["model"]] = item
    wins = words = 0.0
    for each in answers.values():
        before, after = (f1(each[model]["response"], each[model]["target"]) for model in ("sft", "dpo"))
        wins += (after > before) + (after == before) / 2
        words += len(each["dpo"]["response"].split()) - len(each["sft"]["response"].split())
    return wins / len(answers), words / len(answers)


def at_equal_wins(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Of each curve of (wins, words) the words more where all win as often: by straight lines between its
    points, the mean over the wins that all curves have. It begins at a half of the wins, with none."""
    lines = {name: sorted([(0.5, 0.0), *points]) for name, points in curves.items()}
    low = max(min(wins for wins, _ in points) for points in curves.values())
    high = max(low, min(line[-1][0] for line in lines.values()))
    at = np.linspace(low, high, 64)
    return {
        name: float(np.interp(at, [wins for wins, _ in line], [words for _, words in line]).mean())
        for name, line in lines.items()
    }
