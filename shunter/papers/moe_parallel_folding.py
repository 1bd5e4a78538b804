"""Experts folded over all ranks of a stage (arXiv 2504.14960).

A mixture of eight experts learns on one process and on four, under layouts that the classical limit (no more
expert ranks than data ranks) forbids or that cut experts too. Bytes of exchanges are counted from groups, for
nodes of eight ranks; what they would take is modelled by a time to begin and a time a byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.layout.folding import Link, Sent, layer_exchange, modelled_seconds, unfolded_experts
from shunter.layout.grid import Grid
from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.papers.layouts import gap, losses

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "moe-parallel-folding.yaml"
ONE = "one process"
LAYOUTS = {
    "tp 2 x cp 2, ep 4": "{tp: 2, cp: 2, ep: 4}",
    "dp 2 x tp 2, ep 2 x etp 2": "{dp: 2, tp: 2, ep: 2, etp: 2}",
    "pp 2 x dp 2, ep 2": "{pp: 2, dp: 2, ep: 2, microbatches: 4}",
}
NODE = 8  # ranks
FOLDED, UNFOLDED = Grid(cp=8, ep=8), Grid(dp=8, cp=8, ep=8)
# Of the model of time. A rank's tokens, bytes of a vector, and links inside a node and between two.
TOKENS, WIDTH = 4096, 2 * 6144
INSIDE, BETWEEN = Link(5e-6, 1 / 450e9), Link(1e-5, 1 / 50e9)
# Experts, chosen, width of one; 16 ranks a stage, among which a row is in at least two parts.
MIXTURES = {"8 experts, top 2": (8, 2, 16384), "64 experts, top 8": (64, 8, 2048)}
STAGE, RATE = 16, 400e12  # ranks; flops/s of a rank


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.base.train.steps=5"] if short else []
    arms = {name: [*quick, f"jobs.base.how.parallel={text}"] for name, text in LAYOUTS.items()}
    return {ONE: quick, **arms}


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    expected = losses(arms[ONE])
    found: dict[str, Samples] = {}
    for name, arm in arms.items():
        values = losses(arm)
        found[name] = {"loss": values[-1], "gap": gap(values, expected)}
    return {**found, **_counted(), **_modelled()}


def _counted() -> dict[str, Samples]:
    """Eight context and eight expert ranks: of 4096 rows a rank with two experts each, all ranks together."""
    groups = {
        "folded": (FOLDED, lambda rank: FOLDED.peers(("ep",), rank)),
        "unfolded": (UNFOLDED, lambda rank: unfolded_experts(UNFOLDED, rank)),
    }
    found: dict[str, Samples] = {}
    for name, (grid, peers) in groups.items():
        sent = [layer_exchange(r, peers(r), TOKENS, 2, WIDTH, NODE) for r in range(grid.size)]
        found[name] = {
            "ranks": float(grid.size),
            "inside": sum(each.inside for each in sent) / grid.size / 1e6,
            "between": sum(each.between for each in sent) / grid.size / 1e6,
        }
    found["expected, folded"] = {"ranks": 8.0, "between": 0.0}
    found["expected, unfolded"] = {"ranks": 64.0, "inside": 0.0}
    return found


def plans(experts: int, folded: bool) -> Iterator[Grid]:
    """Layouts of a stage of 16 ranks in which a rank has half of a row's tokens at most, and an eighth of the
    experts' weights at most."""
    for tp in (1, 2, 4, 8):
        for cp in (1, 2, 4, 8):
            if tp * cp < 2 or STAGE % (tp * cp):
                continue
            dp = STAGE // (tp * cp)
            for ep in (1, 2, 4, 8, 16):
                if ep < 8 or experts % ep or (not folded and dp % ep):
                    continue
                yield Grid(dp=dp, tp=tp, cp=cp, ep=ep)


def seconds(grid: Grid, experts: tuple[int, int, int], folded: bool) -> float:
    """Modelled, of a layer's experts forward and backward on rank 0: their products and their exchange."""
    _, chosen, width = experts
    rows = 2 * TOKENS // (grid.tp * grid.cp)
    peers = grid.peers(("ep",), 0) if folded else unfolded_experts(grid, 0)
    sent: Sent = layer_exchange(0, peers, rows, chosen, WIDTH, NODE)
    work = 3 * 2 * 3 * rows * chosen * (WIDTH // 2) * width / RATE
    # Per token of the step, so that layouts with other data degrees can be compared.
    return (work + modelled_seconds(sent, INSIDE, BETWEEN, len(peers))) / (rows * STAGE)


def _modelled() -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    for name, experts in MIXTURES.items():
        best = {
            kind: min(
                seconds(grid, experts, kind == "folded") for grid in plans(experts[0], kind == "folded")
            )
            for kind in ("folded", "unfolded")
        }
        for kind, value in best.items():
            found[f"modelled, {kind}: {name}"] = {"layer": value * 1e9}
        found[f"modelled: {name}"] = {"gain": best["unfolded"] / best["folded"]}
    return found


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        f"inside, between: by formula from the groups, {NODE} ranks a node, {TOKENS} rows a rank, "
        "two experts each.",
        "modelled: 450 GB/s inside a node, 50 GB/s between two, 400 Tflop/s a rank, 16 ranks a stage; "
        "experts alone, without attention. Nothing of it is measured.",
        "Both drop scopes and the gradient's scale are shown by tests; nothing here ran on a GPU.",
    ]


EXPERIMENT = Experiment(
    slug="moe-parallel-folding",
    recipe=RECIPE,
    arms=_arms,
    apart=tuple(LAYOUTS),
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "loss": "nats/token, last step",
        "gap": "nats/token, largest over the steps",
        "ranks": "ranks that cp 8 and ep 8 take",
        "inside": "MB a layer and rank inside a node",
        "between": "MB a layer and rank between nodes",
        "layer": "ns a token of a layer's experts, modelled",
        "gain": "unfolded / folded, modelled",
    },
    notes=_notes,
)
