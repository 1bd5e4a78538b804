"""Embedding and head with degrees of their own, by real training steps on two ranks.

    python -m bench.ends [CASE ...] [--rounds N] [--tiny]

Layers are sharded over both ranks (fsdp 2). The table and the head, which are most of these small models, are
sharded too and gathered in each micro-batch (alike), or cut by words (cut), or whole on each (whole).

All take the same steps in the same two processes (one thread each), one after the other, the order turned
round each time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench.measure import WAIT, interval, machine, on_ranks, rounded, save
from bench.vocabulary import CASES, LENGTH, MICROBATCHES, ROWS, batches, spec
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.parallel.mesh import ProcessGroups
from shunter.train.config import Parallel, TrainConfig
from shunter.train.layout_parts import Plan
from shunter.train.layout_traffic import step_traffic
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World

ROUNDS, WARMUP, RANKS = 15, 2, 2
LAYERS = {"fsdp": 2, "microbatches": MICROBATCHES}
ARMS: dict[str, dict[str, Any]] = {
    "alike": LAYERS,
    "cut": {**LAYERS, "ends": {"tp": 2}},
    "whole": {**LAYERS, "ends": {"dp": 2}},
}


class Arm:
    """One layout on this rank."""

    def __init__(self, name: str, case: str, rank: int, groups: ProcessGroups) -> None:
        parallel = Parallel.model_validate(ARMS[name])
        world = World.create(parallel.grid, rank, torch.device("cpu"), groups, parallel.others)
        decoder = Decoder(spec(case))
        init_weights(decoder, 0)
        self.passes = LaidOutPasses(decoder, parallel, world, LENGTH)
        self.optimizers = Optimizers(decoder, TrainConfig(steps=1, optimizer="adamw"), self.passes.part)
        self.batches = batches(spec(case).vocab_size)
        weight = -1 / (RANKS * MICROBATCHES * ROWS * LENGTH)
        self.coefficients = [torch.full((ROWS, LENGTH), weight) for _ in self.batches]

    def step(self) -> float:
        loss, _ = self.passes.gradients(self.batches, self.coefficients, 0.0)
        self.passes.clip(1.0)
        self.optimizers.step(1e-3)
        self.optimizers.zero_grad()
        return float(loss)


def worker(rank: int, case: str, rounds: int) -> dict[str, Any]:
    groups = ProcessGroups(timeout=WAIT)
    arms = {name: Arm(name, case, rank, groups) for name in ARMS}
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(rounds + WARMUP):
        for name in list(ARMS) if turn % 2 else list(ARMS)[::-1]:
            dist.barrier()
            begin = time.perf_counter()
            losses[name].append(arms[name].step())
            dist.barrier()
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - begin)
    return {"seconds": seconds, "losses": losses}


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Each arm's ratio to the layout that is alike, and the bytes that a rank sends."""
    found = on_ranks(RANKS, worker, case, rounds)
    arms = {}
    for name in ARMS:
        # The same training, whatever the layout.
        assert np.allclose(found["losses"][name], found["losses"]["alike"], rtol=1e-4), name
        pairs = [a / b for a, b in zip(found["seconds"]["alike"], found["seconds"][name], strict=True)]
        middle, low, high = interval(pairs)
        rows = RANKS * MICROBATCHES * ROWS
        plan = Plan.make(spec(case), Parallel.model_validate(ARMS[name]), LENGTH, rows)
        arms[name] = {
            "faster_than_alike": middle, "interval": [low, high],
            "seconds": rounded(found["seconds"][name]),
            "mib_sent": round(sum(step_traffic(plan, 0).values()) / 2**20, 1),
        }  # fmt: skip
    return {"case": case, "arms": arms, "machine": machine()}


def main() -> int:
    """Measure the cases named, or the first two; print and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="two rounds of one case; nothing is kept")
    given = parser.parse_args()
    chosen, rounds = given.cases or list(CASES)[:2], given.rounds
    if unknown := [name for name in chosen if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}. Known: {', '.join(CASES)}.")
    if given.tiny:
        chosen, rounds = [min(chosen, key=lambda case: CASES[case][-1])], 2
    os.environ["OMP_NUM_THREADS"] = "1"
    cases = {}
    for case in chosen:
        found = cases[case] = measure(case, rounds)
        print(case)
        for name, arm in found["arms"].items():
            low, high = arm["interval"]
            ratio = f"{arm['faster_than_alike']:.2f} [{low:.2f}, {high:.2f}]"
            print(f"  {name:<8}{ratio}   MiB sent {arm['mib_sent']:8.1f}", flush=True)
    what = "steps on two ranks, layers sharded: seconds with the ends sharded by those of others"
    if given.tiny:
        return 0
    save("ends", {"what": what, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
