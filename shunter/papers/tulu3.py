"""Supervised tuning, preferences by means over tokens, then rewards by rule (arXiv 2411.15124).

One arm is the whole; the stages are its jobs, and all are asked the same questions, none of which they learnt
from. The other arm prefers by sums over tokens. The mixture is made with the suite's questions in it, and
cleaned; beside the stages one model learns from it as it was, and another as long from what is left. Cleaning
takes more than those questions, so these two are compared by how much better they answer the suite than other
questions of the same kinds. What preferences do to the length of answers: see `tulu3_length`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.data.puzzles import Kind
from shunter.papers import tulu3_length
from shunter.papers.experiment import Arm, Experiment, Samples

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "tulu3.yaml"
STAGES = ("base", "sft", "dpo", "rlvr")
CLEANING = ("cleaned", "contaminated")  # of one mixture
KINDS: tuple[Kind, ...] = ("largest", "count", "sort")
FRESH = 977  # the seed of questions that no job here asks
SUMS = "preferences by sums"


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    size = [
        "jobs.base.train.steps=20", "jobs.sft.train.steps=40", "jobs.second.train.steps=20",
        "jobs.cleaned.train.steps=60", "jobs.contaminated.train.steps=60", "jobs.both.puzzles.test=12",
        *(f"jobs.{job}.puzzles.test=6" for job in ("dev", "later", "mixture", "found")),
        "jobs.pairs.sampled.count=60", "jobs.dpo.train.steps=2", "jobs.dpo.train.warmup=0",
        "jobs.rlvr.train.steps=2", "jobs.rlvr.train.warmup=0",
    ]  # fmt: skip
    chosen = size if short else []
    return {
        "stages": [*chosen, "jobs.unseen.unseen=final"],
        SUMS: [*chosen, "jobs.dpo.loss=dpo", "jobs.rlvr.train.steps=1", "jobs.rlvr.train.warmup=0"],
        **tulu3_length.overrides(short),
    }


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    whole = arms["stages"]
    found: dict[str, Samples] = {}
    for stage in STAGES:
        found[stage] = {**_suite(whole, "scores", stage, "dev"), **_suite(whole, "unseen", stage, "unseen")}
    leads = _leads(whole)
    found |= {model: {**_suite(whole, "scores", model, "dev"), "lead": leads[model]} for model in CLEANING}
    found[SUMS] = _suite(arms[SUMS], "scores", "dpo", "dev")
    return {**found, **tulu3_length.measure(arms), **_planted(whole)}


def _suite(arm: Arm, job: str, model: str, name: str) -> dict[str, float]:
    told = json.loads((arm[job].path / "scores.json").read_text(encoding="utf-8"))["models"][model]["tasks"]
    passed = {f"{name} {kind}": float(told[kind]["value"]) for kind in KINDS}
    lengths = [float(told[f"{kind} length"]["value"]) for kind in KINDS]
    found = {name: sum(passed.values()) / len(KINDS), **(passed if name == "dev" else {})}
    return {**found, **({"length": sum(lengths) / len(KINDS)} if name == "dev" else {})}


def _leads(arm: Arm) -> Mapping[str, float]:
    """Of each model, the score on the suite's questions less that on the others; the mean over kinds."""
    suite = _asked(arm)
    scores: dict[tuple[str, str, bool], list[float]] = {}
    for line in (arm["remembered"].path / "items.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        mine = any(question in item["prompt"] for question in suite)
        scores.setdefault((item["model"], item["task"], mine), []).append(item["score"])
    means = {key: sum(each) / len(each) for key, each in scores.items()}
    return {
        model: sum(means[model, kind, True] - means[model, kind, False] for kind in KINDS) / len(KINDS)
        for model in CLEANING
    }


def _asked(arm: Arm) -> list[str]:
    """The dev suite's questions."""
    lines = (arm["dev"].path / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def _planted(arm: Arm) -> Mapping[str, Samples]:
    """The dev suite's questions among other words: how many are found, and how many other questions of the
    same kinds are taken for one."""
    from itertools import islice

    from shunter.data.contamination import Contamination
    from shunter.data.puzzles import puzzles

    suite = _asked(arm)
    index = Contamination({"dev": suite})
    found = sum(index.worst(f"Please tell me. {text} Thank you.") is not None for text in suite)
    fresh = [it.messages[0]["content"] for kind in KINDS for it in islice(puzzles(kind, 4, FRESH), 300)]
    others = [text for text in fresh if text not in set(suite)]
    return {
        "planted": {"found": found / len(suite)},
        "others": {"found": sum(index.worst(text) is not None for text in others) / len(others)},
        "all": {"found": 1.0},
    }


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "dev, unseen: pass@1 of four answers at temperature 1, over three kinds of held-out questions.",
        "found, others: of other questions of the same kinds, those that hold over half of one of the suite.",
        "contaminated, cleaned: tuned longer than sft, on a mixture that holds each of the questions eight "
        "times, rightly answered, and on what decontamination leaves of it, which is less than all else.",
        "lead: the score on these questions less that on as many others that stand in neither mixture.",
        "unseen: longer questions of the same kinds; scored for this table alone.",
        "Rewards are learnt from by GRPO, as in Tülu 3.1, without a value model.",
        *tulu3_length.NOTES,
    ]


EXPERIMENT = Experiment(
    slug="tulu3",
    recipe=RECIPE,
    recipes=dict.fromkeys(tulu3_length.ARMS, tulu3_length.RECIPE),
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "dev": "pass@1",
        "unseen": "pass@1",
        **{f"dev {kind}": "pass@1" for kind in KINDS},
        "lead": "pass@1",
        "length": "characters of an answer",
        **tulu3_length.TABLE,
        "found": "share of questions",
    },
    notes=_notes,
)
