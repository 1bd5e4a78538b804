"""Layers cut over tensor ranks with two sums forward and two backward each (arXiv 1909.08053).

A small GPT-like decoder with a vocabulary of 8,191 learns on one process, and on two that hold half of each
matrix, with every token on both ranks (the paper's form) and with tokens shared out between products. Losses
are compared step by step; what a step sends is counted, and so is what each rank keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.papers.layouts import gap, losses, traffic

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "megatron-tensor-parallel.yaml"
VOCABULARY, DIM, FFN, LAYERS, ROWS, LENGTH = 8191, 128, 352, 4, 8, 64  # as in the recipe
FLOAT = 4  # bytes
RANKS = 2
ONE, PLAIN, SPREAD, FEW = "one process", "tp=2", "tp=2, tokens shared out", "tp=2, two layers"
HALVES = "one process, micro-batches of 4"  # sums in another order: what rounding alone does


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.base.train.steps=4", "jobs.base.train.warmup=1"] if short else []
    few = ["jobs.base.train.steps=3", "jobs.base.train.warmup=1", "jobs.base.model.num_layers=2"]
    layout = "jobs.base.how.parallel"
    plain = f"{layout}={{tp: 2, sequence: false, microbatches: 1, timeline: 2}}"
    spread = f"{layout}={{tp: 2, microbatches: 1, timeline: 2}}"
    halves = [*quick, "jobs.base.how.micro_batch=4"]
    return {ONE: quick, HALVES: halves, PLAIN: [*quick, plain], SPREAD: [*quick, spread], FEW: [*few, plain]}


def parameters(layers: int) -> tuple[int, int]:
    """Of the recipe's decoder: those in matrices, which are cut, and those of norms, which are not."""
    return VOCABULARY * DIM + layers * (4 * DIM * DIM + 3 * DIM * FFN), (2 * layers + 1) * DIM


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    expected = losses(arms[ONE])
    found: dict[str, dict[str, float]] = {ONE: {"loss": expected[-1], "gap": 0.0}}
    halves = losses(arms[HALVES])
    found[HALVES] = {"loss": halves[-1], "gap": gap(halves, expected)}
    sent = {name: traffic(arms[name]) for name in (PLAIN, SPREAD, FEW)}
    for name in (PLAIN, SPREAD):
        values = losses(arms[name])
        head = sent[name][0]["head"]
        found[name] = {
            "loss": values[-1],
            "gap": gap(values, expected),
            "weights": max(rank["weights"] for rank in sent[name]) / 1e6,
            "optimizer": max(rank["optimizer"] for rank in sent[name]) / 1e6,
            "head": sum(size for _, size in head.values()) / 1e3,
        }
    more = LAYERS - 2
    many, few = (sent[name][0]["sent"]["all-reduce"] for name in (PLAIN, FEW))
    found[PLAIN]["calls"] = (many[0] - few[0]) / more
    found[PLAIN]["layer"] = (many[1] - few[1]) / more / 1e3
    cut, norms = parameters(LAYERS)
    odd = DIM / 2  # the first rank's row more of an odd vocabulary
    tokens = ROWS * LENGTH
    found["formula"] = {
        "weights": FLOAT * (cut / RANKS + odd + norms) / 1e6,
        # Of n ranks an all-reduce of s bytes sends 2 s (n - 1) / n, here s.
        "calls": 4.0,
        "layer": 4 * FLOAT * tokens * DIM / 1e3,
        "head": 3 * FLOAT * tokens / 1e3,
    }
    found["logits gathered"] = {"head": FLOAT * tokens * (VOCABULARY + 1) / RANKS / 1e3}
    found[ONE] |= {"weights": FLOAT * (cut + norms) / 1e6, "optimizer": 2 * FLOAT * (cut + norms) / 1e6}
    return found


def efficiency(
    ranks: int, *, flops: float, rate: float, moved: float, bandwidth: float, wait: float
) -> float:
    """Modelled share of a rank's time spent computing, in a layer cut over `ranks`.

    flops of the whole layer, forward and backward; rate: flops/s of a rank; moved: bytes of one all-reduce,
    of which a layer has four; bandwidth: bytes/s; wait: seconds of each of the 2 (n - 1) hops.
    """
    compute = flops / ranks / rate
    each = 2 * (ranks - 1) * (wait + moved / ranks / bandwidth)
    return compute / (compute + 4 * each)


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    # Width 3072, 8 rows of 1024 in half precision; 39 Tflop/s is the paper's single GPU; 130 GB/s is assumed.
    tokens, dim = 8 * 1024, 3072
    work = 3 * 2 * tokens * (12 * dim * dim + 2 * 1024 * dim)
    shares = [
        efficiency(n, flops=work, rate=39e12, moved=2.0 * tokens * dim, bandwidth=130e9, wait=5e-6)
        for n in (2, 4, 8)
    ]
    return [
        "sent: by the cheapest usual algorithm; an all-reduce of s bytes on two ranks sends s.",
        "a layer's calls and bytes are half of what four layers send more than two.",
        "Modelled, not measured: a layer of width 3072 at 39 Tflop/s with all-reduces at 130 GB/s spends "
        + ", ".join(f"{share:.0%} ({n} ranks)" for n, share in zip((2, 4, 8), shares, strict=True))
        + " of its time computing.",
        "Post-LN against rearranged layer norms (BERT) is not built.",
    ]


EXPERIMENT = Experiment(
    slug="megatron-tensor-parallel",
    recipe=RECIPE,
    arms=_arms,
    apart=(HALVES, PLAIN, SPREAD, FEW),
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "loss": "nats/token, last step",
        "gap": "nats/token, largest over the steps",
        "weights": "MB, the fullest rank",
        "optimizer": "MB, the fullest rank",
        "calls": "all-reduces of a layer in a step",
        "layer": "kB that a rank sends for a layer in a step",
        "head": "kB that a rank sends for the head in a step",
    },
    notes=_notes,
)
