"""Vocabulary Parallelism against the head on the last stage, by real training steps on two ranks.

naive         the layers cut evenly, embedding on the first stage, head on the last.
redistributed the layers cut so that the stages cost the same, head included: what a careful person does.
algorithm 1/2 embedding and head split over both ranks.

v-half        the same two layouts of the schedule in which both ends are on the first rank.

All take the same steps in the same two processes (one thread each), one after the other, the order turned
round each time. Bytes: most that are alive in tensors during a step, weights and optimizer state included.
The ideal is the naive step's time by that of even work: what the ratio would be without any bubble.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from bench.measure import RESULTS, WAIT, interval, machine, on_ranks, rounded, save
from shunter.data.tokens import Batch
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.parallel.cut import decoder_costs
from shunter.parallel.mesh import ProcessGroups
from shunter.train.config import Parallel, TrainConfig
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World

GOAL, SPREAD = 1.4, 0.05
ROUNDS = 15
RANKS, LENGTH, ROWS, MICROBATCHES = 2, 128, 4, 8
CASES = {  # width, layers, vocabulary
    "h128-32k": (128, 4, 32768),
    "h128-8k": (128, 4, 8192),
    "h256-32k": (256, 8, 32768),
}
ARMS: dict[str, dict[str, Any]] = {
    "naive": {},
    "redistributed": {},
    "algorithm 1": {"vocabulary": 1},
    "algorithm 2": {"vocabulary": 2},
    "v-half naive": {"schedule": "v-half"},
    "v-half algorithm 2": {"schedule": "v-half", "vocabulary": 2},
}


def spec(case: str) -> DecoderSpec:
    dim, layers, vocabulary = CASES[case]
    return DecoderSpec(
        vocab_size=vocabulary, dim=dim, num_layers=layers, num_heads=dim // 64, num_kv_heads=dim // 64,
        head_dim=64, ffn_dim=dim * 8 // 3 // 32 * 32, max_positions=LENGTH, tied=False,
    )  # fmt: skip


def batches(vocabulary: int) -> list[Batch]:
    draw = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    return [
        Batch(
            draw.integers(vocabulary, size=shape),
            draw.integers(vocabulary, size=shape),
            np.zeros(shape, np.int32),
            np.broadcast_to(np.arange(LENGTH), shape).copy(),
            np.arange(ROWS),
        )
        for _ in range(MICROBATCHES)
    ]


class Arm:
    """One layout's stages and optimizer on this rank."""

    def __init__(self, name: str, case: str, world: World) -> None:
        shape = spec(case)
        decoder = Decoder(shape)
        init_weights(decoder, 0)
        options = {"schedule": "1f1b", **ARMS[name]}
        if "naive" in name:
            stages = 2 * RANKS if options["schedule"] == "v-half" else RANKS
            options["cut"] = [shape.num_layers * stage // stages for stage in range(1, stages)]
        parallel = Parallel(pp=RANKS, microbatches=MICROBATCHES, **options)
        self.passes = LaidOutPasses(decoder, parallel, world, LENGTH)
        self.optimizers = Optimizers(decoder, TrainConfig(steps=1, optimizer="adamw"))
        self.batches = batches(shape.vocab_size)
        weight = -1 / (MICROBATCHES * ROWS * LENGTH)
        self.coefficients = [torch.full((ROWS, LENGTH), weight) for _ in self.batches]
        self.parameters = [p for p in decoder.parameters() if not p.is_meta]

    def step(self) -> float:
        loss, _ = self.passes.gradients(self.batches, self.coefficients, 0.0)
        self.passes.clip(1.0)
        self.optimizers.step(1e-3)
        self.optimizers.zero_grad()
        return float(loss)

    def bytes(self) -> int:
        """The most bytes alive during a step, what stays between steps included."""
        state = [tensor for states in self.optimizers.state().values() for tensor in states.values()]
        live = peak = sum(tensor.nbytes for tensor in [*self.parameters, *state])
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step()
        results: Any = record.profiler
        events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return int(peak)


def worker(rank: int, case: str) -> dict[str, Any]:
    world = World.create(Grid(pp=RANKS), rank, torch.device("cpu"), ProcessGroups(timeout=WAIT))
    arms = {name: Arm(name, case, world) for name in ARMS}
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(ROUNDS + 2):
        for name in list(ARMS) if turn % 2 else list(ARMS)[::-1]:
            dist.barrier()
            begin = time.perf_counter()
            losses[name].append(arms[name].step())
            dist.barrier()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begin)
    peaks = {}
    for name, arm in arms.items():
        every: list[Any] = [None] * RANKS
        dist.all_gather_object(every, arm.bytes())
        peaks[name] = every
    return {"seconds": seconds, "losses": losses, "bytes": peaks}


def measure(case: str) -> dict[str, Any]:
    """Each arm's ratio to the naive one, and its bytes."""
    found = on_ranks(RANKS, worker, case)
    naive = found["losses"]["naive"]
    for name, losses in found["losses"].items():  # the same training, whatever the layout
        assert np.allclose(losses, naive, rtol=1e-4), name
    layers, _, head = decoder_costs(spec(case), LENGTH)
    ideal = (sum(layers) / RANKS + head) / ((sum(layers) + head) / RANKS)
    arms = {}
    for name in ARMS:
        seconds, sizes = found["seconds"][name], found["bytes"][name]
        pairs = [a / b for a, b in zip(found["seconds"]["naive"], seconds, strict=True)]
        middle, low, high = interval(pairs)
        arms[name] = {
            "faster_than_naive": middle, "interval": [low, high], "seconds": rounded(seconds),
            "mib": [round(size / 2**20, 1) for size in sizes],
            "spread": (max(sizes) - min(sizes)) / max(sizes),
        }  # fmt: skip
    return {"case": case, "ideal": ideal, "arms": arms, "machine": machine()}


def main() -> int:
    """Measure the cases named, or all; print and keep them."""
    chosen = sys.argv[1:] or list(CASES)
    if unknown := [name for name in chosen if name not in CASES]:
        print(f"error: no such case: {', '.join(unknown)}. Known: {', '.join(CASES)}.", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"
    kept = RESULTS / "vocabulary.json"
    cases: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["cases"] if kept.exists() else {}
    for case in chosen:
        found = cases[case] = measure(case)
        print(f"{case}: ideal {found['ideal']:.2f}; goal {GOAL}, spread of bytes under {SPREAD:.0%}")
        for name, arm in found["arms"].items():
            low, high = arm["interval"]
            print(
                f"  {name:<20}{arm['faster_than_naive']:.2f} [{low:.2f}, {high:.2f}]   "
                f"MiB {' '.join(f'{size:7.1f}' for size in arm['mib'])}   spread {arm['spread']:.1%}",
                flush=True,
            )
        what = "steps on two ranks: seconds of the naive layout by those of others"
        save("vocabulary", {"what": what, "goals": {"faster": GOAL, "spread": SPREAD}, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
