"""Adapters against full fine-tuning, and against peft on transformers: the same model, rows and optimizer.

A step is forward, loss, backward, clipping and AdamW (fused), from token ids to new weights; rank 8 on all
seven projections of a layer. Two sides take turns in one process with the same threads. Both begin with the
same A and with B drawn anew (from zero, half of the gradient would be zero); losses must agree.

Live bytes are the most that are alive during a step: the profiler's memory events over it, on top of weights
and optimizer state, the same tool on all sides. `weights` and `state` are told apart.

`python -m bench.lora` measures all; `python -m bench.lora 5M-fp32` one case. peft must be installed
(`pip install peft`). Cases not measured keep their earlier result.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.measure import RESULTS, _version, alternate, machine, save
from bench.train_step import CLIP, RATE, SIZES, Size, batch_of, peak_bytes
from shunter.data.tokens import Batch
from shunter.models.adapter import AdaptedLinear
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, save_model
from shunter.models.init import init_weights
from shunter.surgery.adapter_folder import save_adapter
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach
from shunter.train.config import TrainConfig
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.step import train_step

WIDTH, LIMIT, ROUNDS = 0.03, 30.0, 12  # BENCH_ROUNDS sets the last
GOAL = 1.0  # at least as fast as peft
CASES = {f"{size}-{precision}": (size, precision) for size, precision in product(SIZES, ("fp32", "bf16"))}
CONFIG = TrainConfig(steps=1000, optimizer="adamw", lr=RATE)


@dataclass
class Side:
    """A step, and the bytes that are there before it."""

    step: Callable[[], float]
    weights: int
    state: int


def _side(step: Callable[[], float], model: nn.Module) -> Side:
    parameters = list(model.parameters())
    moments = sum(2 * p.nbytes for p in parameters if p.requires_grad)
    return Side(step, sum(p.nbytes for p in parameters), moments)


def _adapted(folder: Path, quantise: str) -> Decoder:
    decoder = load_model(folder)
    attach(decoder, AdapterConfig(quantise=quantise), seed=0)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, AdaptedLinear):
                for parameter in module.b.values():
                    parameter.normal_(0.0, 0.01, generator=generator)
    return decoder


def ours(folder: Path, batch: Batch, precision: str, quantise: str | None) -> Side:
    """Our step; quantise None: full fine-tuning."""
    decoder = load_model(folder) if quantise is None else _adapted(folder, quantise)
    optimizers, objective = Optimizers(decoder, CONFIG), CrossEntropy()
    passes = OnePass(decoder, decoder, torch.device("cpu"), precision)

    def step() -> float:
        return train_step(passes, optimizers, objective, [batch], step=0, rate=RATE, clip=CLIP).loss

    return _side(step, decoder)


def theirs(folder: Path, batch: Batch, precision: str) -> Side:
    """The step that a user of peft writes, with our adapters loaded."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    save_adapter(_adapted(folder, "none"), AdapterConfig(), folder / "adapter")
    model = PeftModel.from_pretrained(base, str(folder / "adapter"), is_trainable=True).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    betas = (CONFIG.betas[0], CONFIG.betas[1])
    optimizer = torch.optim.AdamW(
        trained, lr=RATE, betas=betas, eps=CONFIG.eps, weight_decay=CONFIG.weight_decay, fused=True
    )
    tokens = torch.from_numpy(batch.tokens)

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return _side(step, model)


def measure(case: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """One case: adapters against each other side. Raises if they do not compute the same as peft."""
    name, precision = CASES[case]
    size: Size = SIZES[name]
    batch = batch_of(size, "rows")
    tokens = size.rows * size.length
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = Decoder(size.spec)
        init_weights(first, 0)
        save_model(first, folder)
        sides = {
            "lora": ours(folder, batch, precision, "none"),
            "lora-bf16": ours(folder, batch, precision, "bf16"),
            "qlora-int8": ours(folder, batch, precision, "int8"),
            "qlora-nf4": ours(folder, batch, precision, "nf4"),
            "full": ours(folder, batch, precision, None),
            "peft": theirs(folder, batch, precision),
        }
    losses = [[sides["lora"].step(), sides["peft"].step()] for _ in range(4)]
    tolerance = 2e-2 if precision == "bf16" else 1e-4
    if max(abs(a - b) for a, b in losses) > tolerance:
        raise SystemExit(f"{case}: the two sides do not compute the same: {losses}")
    against: dict[str, Any] = {}
    width = WIDTH if rounds >= ROUNDS else None  # fewer: those and no more
    for ours_name, other in (
        ("lora", "peft"),
        ("lora", "full"),
        ("qlora-nf4", "peft"),
        ("qlora-nf4", "lora"),
    ):
        found = alternate(sides[ours_name].step, sides[other].step, rounds, 1, width=width, limit=LIMIT)
        against[f"{ours_name} by {other}"] = {
            "tokens_per_second": [tokens / float(np.median(found[side])) for side in "ab"],
            "ratio": found["ratio_median"],
            "interval": [found["ratio_low"], found["ratio_high"]],
            "cpu_ratio": found["cpu_ratio_median"],
            "rounds": len(found["a"]),
            "others": found["others"],
        }
    memory = {}
    for side_name, side in sides.items():
        before = side.weights + side.state
        memory[side_name] = {
            "weights_mib": side.weights / 2**20,
            "state_mib": side.state / 2**20,
            "peak_mib": peak_bytes(side.step, before) / 2**20,
        }
    by_peft = against["lora by peft"]["ratio"]
    return {
        "parameters": size.spec.num_parameters,
        "batch": [size.rows, size.length],
        "speed": against,
        "memory": memory,
        "goal": GOAL,
        "reached": by_peft >= GOAL,
        "less_than_full": memory["lora"]["peak_mib"] < memory["full"]["peak_mib"],
        "losses": losses[-1],
        "peft": _version("peft"),
        "machine": machine(),
    }


def main() -> int:
    """Measure the cases named, or all. Returns 0; what is not reached stands in the table."""
    if find_spec("peft") is None:
        print("error: this compares with peft, which is not installed. pip install peft.", file=sys.stderr)
        return 2
    chosen = sys.argv[1:] or list(CASES)
    if unknown := [case for case in chosen if case not in CASES]:
        print(f"error: no such case: {', '.join(unknown)}. Known: {', '.join(CASES)}.", file=sys.stderr)
        return 2
    threads = int(os.environ.get("BENCH_THREADS", "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    path = RESULTS / "lora.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8"))["cases"] if path.exists() else {}
    for case in chosen:
        found = measure(case, int(os.environ.get("BENCH_ROUNDS", ROUNDS)))
        kept[case] = {**found, "threads": threads}
        for pair, speed in found["speed"].items():
            low, high = speed["interval"]
            a, b = speed["tokens_per_second"]
            print(
                f"{case:<10}{pair:<20}{a:>8.0f} to {b:>6.0f} tokens/s  {speed['ratio']:.3f} "
                f"({low:.3f}-{high:.3f}), CPU {speed['cpu_ratio']:.3f}, others {speed['others']:.2f}"
            )
        for side, told in found["memory"].items():
            parts = ", ".join(f"{key.removesuffix('_mib')} {value:.1f}" for key, value in told.items())
            print(f"{case:<10}{side:<20}MiB: {parts}", flush=True)
        save(
            "lora",
            {
                "what": "a training step of adapters (rank 8, all projections), full fine-tuning, peft",
                "how": "alternating in one process; the median of the ratios of rounds, 95 % bootstrap",
                "note": "Other work may have shared the cores: each case tells the load when it ended.",
                "cases": {name: kept[name] for name in CASES if name in kept},
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
