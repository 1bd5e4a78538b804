"""Reinforcement learning as a dataflow of roles that places itself (arXiv 2409.19256).

Three parts. Weights change between the layout they are learnt in and the one they write in, on eight gloo
processes, in the paper's way and two others. PPO learns with its roles on processes in five placements. And
the mapper is put beside three fixed placements in the planner's simulator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.record import events

PAPERS = Path(__file__).parents[2] / "recipes" / "papers"
RECIPE = PAPERS / "hybridflow.yaml"
STYLES = ("hybridflow", "vanilla", "sharded")
# p-t-d to pg-tg.
LAYOUTS: Mapping[str, Mapping[str, int]] = {
    "1-4-2 to 1-2": {"p": 1, "t": 4, "d": 2, "pg": 1, "tg": 2},
    "1-4-2 to 1-1": {"p": 1, "t": 4, "d": 2, "pg": 1, "tg": 1},
    "2-4-1 to 1-2": {"p": 2, "t": 4, "d": 1, "pg": 1, "tg": 2},
    "2-2-2 to 2-1": {"p": 2, "t": 2, "d": 2, "pg": 2, "tg": 1},
}
PLACEMENTS = {
    "one process": "alone",
    "colocate": "colocate",
    "split": "split",
    "standalone": "standalone",
    "mapped": "mapped",
}  # arm of the table -> job
DEVICES = (16, 32, 64, 96, 128)


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    arms: dict[str, list[str]] = {}
    for name, degrees in list(LAYOUTS.items())[: 1 if short else None]:
        for style in STYLES:
            values = {**degrees, "style": style}
            arms[f"{style}, {name}"] = [f"jobs.reshard.{key}={value}" for key, value in values.items()]
    quick = [f"jobs.{job}.train.steps=2" for job in PLACEMENTS.values()]
    arms["placements"] = [*quick, "jobs.start.train.steps=12"] if short else []
    arms["mapping"] = []
    return arms


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, dict[str, float]] = {}
    for name, arm in arms.items():
        if "reshard" in arm:
            told = json.loads((arm["reshard"].path / "reshard.json").read_text(encoding="utf-8"))
            of = {"received": "received", "peak": "peak", "redundant": "redundant"}
            found[name] = {key: told["even"][it] / told["weights"] for key, it in of.items()}
            found[name] |= {"right": float(told["right"] and told["counted"]), "seconds": told["seconds"]}
            found[f"table: {name}"] = {key: told["table"][it] / told["weights"] for key, it in of.items()}
            found[f"table: {name}"]["right"] = 1.0
    placed = {name: arms["placements"][job] for name, job in PLACEMENTS.items()}
    losses = {name: _losses(artefact.path) for name, artefact in placed.items()}
    first = (placed["one process"].path / "model.safetensors").read_bytes()
    for name, artefact in placed.items():
        mine, theirs = losses[name], losses["one process"]
        gap = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
        metrics = artefact.manifest.metrics
        found[name] = {
            "loss_gap": gap,
            "same_weights": float((artefact.path / "model.safetensors").read_bytes() == first),
            "moved": float(metrics["moved_bytes"]) / 1e6,
            "control": float(metrics["control_bytes"]) / 1e6,
        }
    mapped = json.loads((arms["mapping"]["mapping"].path / "mapping.json").read_text(encoding="utf-8"))
    winners = {told["winner"] for told in mapped.values()}
    for devices, told in mapped.items():
        fixed = [it["seconds"] for it in told.values() if isinstance(it, dict) and "seconds" in it]
        found[f"mapped, {devices} devices"] = {"iteration": told["chosen"]["seconds"]}
        found[f"best fixed, {devices} devices"] = {"iteration": min(fixed[1:])}
    found["placements that win"] = {"winners": float(len(winners))}
    found["one placement"] = {"winners": 1.0}
    return found


def _losses(folder: Path) -> list[float]:
    rows = events.read_metrics(folder / "log" / "events.jsonl")
    return [row[name] for row in rows for name in ("rl/policy_loss", "rl/value_error") if name in row]


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "received, peak, redundant: of the rank that has most, as a share of all weights that are cut "
        "evenly (matrices of layers); embedding, head and norms go beside them and are not in the table.",
        "peak: weights that are held; the buffer of the one matrix that is under way is not in it.",
        "seconds: eight gloo processes on one machine say nothing about a network of GPUs.",
        "Throughput against other systems is not measured: the paper's baselines need a cluster of GPUs.",
        "iteration: simulated by the planner's cost model, 7B actor, critic, reference and reward model on "
        "A100s, 1024 prompts of 1024 and answers of 1024 tokens, 8 updates.",
    ]


EXPERIMENT = Experiment(
    slug="hybridflow",
    recipe=RECIPE,
    arms=_arms,
    seeds=(0, 1, 2),
    measure=_measure,
    recipes={
        "placements": PAPERS / "hybridflow-rl.yaml",
        "mapping": PAPERS / "hybridflow-map.yaml",
    },
    table={
        "received": "share of the weights that a rank receives",
        "peak": "share of the weights that a rank holds at most",
        "redundant": "share of the weights that a rank holds beside those it writes with",
        "right": "1 where every bit is right and every byte was counted",
        "seconds": "s, there and back",
        "loss_gap": "largest difference of a loss from one process",
        "same_weights": "1 where the weights are the same bits",
        "moved": "MB from worker to worker",
        "control": "MB to and from the controller",
        "iteration": "s, simulated",
        "winners": "placements that are fastest for some number of devices",
    },
    notes=_notes,
)
