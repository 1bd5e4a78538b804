"""Our training step against transformers' model: same configuration, weights, rows, optimizer.

A step is forward, loss, backward, clipping and AdamW (fused), from token ids to new weights. Both sides
have the same number of threads, sdpa attention, and take turns. `rows` are whole rows without padding.
`documents` are rows of four documents that do not see each other: we gather segments, transformers takes
position ids and builds a dense mask.

Peak live bytes come from the profiler's memory events over one step, plus what is alive before it
(parameters and optimizer state): the same tool on both sides, saved activations and logits included.

`python -m bench.train_step` measures all; `python -m bench.train_step 5M-eager-fp32-rows` one case. Cases
not measured keep their earlier result. `--device cuda` measures models of 0.5B and 1.5B parameters, and one
of eight experts with 1.2B, on a GPU, where peak bytes are the allocator's, and keeps the result beside the
CPU's; each side's model FLOP utilisation (MFU) stands in it. The other side's experts run by torch's grouped
product, as ours do. `--device cpu tiny-eager-bf16-rows` tries that form anywhere and keeps nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.measure import RESULTS, alternate, machine, rounded, save
from shunter.data.tokens import IGNORE, Batch
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec, ExpertsSpec
from shunter.train.config import TrainConfig
from shunter.train.device import peak_flops
from shunter.train.flops import batch_flops
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.step import train_step

RATE, CLIP = 3e-4, 1.0
GOALS = {"eager-fp32": 0.98, "compiled-fp32": 1.08, "compiled-bf16": 1.15}
MEMORY_GOAL = 0.8
# The interval of the ratio shall be this narrow, or the time be up.
WIDTH, LIMIT, ROUNDS = 0.02, 45.0, 16
GPU_LIMIT = 6.0  # a GPU's steps vary little, and its time is dear


@dataclass(frozen=True)
class Size:
    """A model and the batch that it is trained on."""

    spec: DecoderSpec
    rows: int
    length: int


def _spec(vocab: int, dim: int, layers: int, ffn: int, experts: ExpertsSpec | None = None) -> DecoderSpec:
    heads = dim // 64
    return DecoderSpec(
        vocab_size=vocab, max_positions=2048, dim=dim, num_layers=layers, num_heads=heads,
        num_kv_heads=heads, head_dim=64, ffn_dim=ffn, tied=experts is None, experts=experts,
        family="llama" if experts is None else "mixtral",
    )  # fmt: skip


SIZES = {
    "5M": Size(_spec(8192, 256, 4, 704), rows=8, length=256),
    "30M": Size(_spec(8192, 512, 8, 1408), rows=8, length=256),
}
# For a GPU; `tiny` and `tiny-moe` are for trying this form.
GPU_SIZES = {
    "tiny": Size(_spec(512, 128, 2, 352), rows=4, length=128),
    "tiny-moe": Size(_spec(512, 128, 2, 352, ExpertsSpec(num_experts=4, per_token=2, ffn_dim=96)), 4, 128),
    "0.5B": Size(_spec(32768, 1280, 24, 3456), rows=8, length=2048),
    "1.5B": Size(_spec(32768, 2048, 28, 5504), rows=4, length=2048),
    "8x0.1B": Size(
        _spec(32768, 1024, 12, 2816, ExpertsSpec(num_experts=8, per_token=2, ffn_dim=3584)),
        rows=4,
        length=2048,
    ),
}
GPU_MODES = ("eager-bf16", "compiled-bf16")
SORTS = ("rows", "documents")
Case = tuple[Size, str, str]
CASES: dict[str, Case] = {
    f"{size}-{mode}-{sort}": (SIZES[size], mode, sort) for size, mode, sort in product(SIZES, GOALS, SORTS)
}
GPU_CASES: dict[str, Case] = {
    f"{size}-{mode}-{sort}": (GPU_SIZES[size], mode, sort)
    for size, mode, sort in product(GPU_SIZES, GPU_MODES, SORTS)
}
CPU = torch.device("cpu")


def batch_of(size: Size, sort: str, seed: int = 0) -> Batch:
    """Random rows of one document, or of four."""
    draw = np.random.default_rng(seed)
    shape = (size.rows, size.length)
    tokens = draw.integers(0, size.spec.vocab_size, shape)
    segments = np.zeros(shape, dtype=np.int32)
    positions = np.tile(np.arange(size.length), (size.rows, 1))
    targets = np.full(shape, IGNORE, dtype=np.int64)
    targets[:, :-1] = tokens[:, 1:]
    if sort == "documents":
        for row in range(size.rows):
            cuts = sorted(draw.choice(np.arange(8, size.length - 8), 3, replace=False).tolist())
            for cut in cuts:
                segments[row, cut:] += 1
                positions[row, cut:] = np.arange(size.length - cut)
                targets[row, cut - 1] = IGNORE
    return Batch(tokens, targets, segments, positions, np.arange(size.rows))


def ours(
    folder: Path, size: Size, mode: str, batch: Batch, device: torch.device = CPU
) -> Callable[[], float]:
    """Write the weights for the other side, and return our step."""
    with torch.device(device):
        decoder = Decoder(size.spec)
    init_weights(decoder, 0)
    save_model(decoder, folder)
    config = TrainConfig(steps=1000, optimizer="adamw", lr=RATE)
    optimizers = Optimizers(decoder, config)
    compiled, precision = mode.split("-")
    model: Any = torch.compile(decoder) if compiled == "compiled" else decoder
    objective = CrossEntropy()
    passes = OnePass(model, decoder, device, precision)

    def step() -> float:
        return train_step(
            passes, optimizers, objective, [batch], step=0, rate=RATE, clip=CLIP
        ).loss  # fmt: skip

    return step


def theirs(
    folder: Path, mode: str, sort: str, batch: Batch, device: torch.device = CPU
) -> Callable[[], float]:
    """The step that a user of transformers writes, on the weights in `folder`."""
    from transformers import AutoModelForCausalLM

    known = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model: Any = known.train()
    if hasattr(model.config, "num_local_experts"):
        model.set_experts_implementation("grouped_mm")
    model.to(device)
    config = TrainConfig(steps=1000, optimizer="adamw", lr=RATE)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.betas[0], config.betas[1])
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=betas, eps=config.eps, fused=True)
    compiled, precision = mode.split("-")
    called: Any = torch.compile(model) if compiled == "compiled" else model
    labels = batch.tokens.copy()
    labels[:, 1:][batch.targets[:, :-1] == IGNORE] = IGNORE
    host = {"input_ids": batch.tokens, "labels": labels}
    if sort == "documents":
        host["position_ids"] = batch.positions

    def step() -> float:
        # Our step brings its rows to the device too.
        inputs = {name: torch.from_numpy(array).to(device) for name, array in host.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = called(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def peak_bytes(step: Callable[[], object], before: int, device: torch.device = CPU) -> int:
    """The most bytes of tensors alive during one step, `before` of them already when it begins."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        alive = torch.cuda.memory_allocated(device)  # the other side's too
        step()
        return before + torch.cuda.max_memory_allocated(device) - alive
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    live = peak = 0
    results: Any = record.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return before + peak


def measure(name: str, case: Case, device: torch.device = CPU) -> dict[str, Any]:
    """One case: both sides on the same weights and rows. Raises if their losses are not the same."""
    size, mode, sort = case
    batch = batch_of(size, sort)
    # In memory, where that is a folder: a gigabyte written and read costs more than all steps.
    memory = "/dev/shm" if device.type == "cuda" else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        a = ours(Path(folder), size, mode, batch, device)
        b = theirs(Path(folder), mode, sort, batch, device)
    losses = [[a(), b()] for _ in range(4)]
    tolerance = 2e-2 if mode.endswith("bf16") else 1e-4
    if max(abs(x - y) for x, y in losses) > tolerance:
        raise SystemExit(f"{name}: the two sides do not compute the same: {losses}")
    found = alternate(a, b, ROUNDS, 1, width=WIDTH, limit=LIMIT)
    parameters = size.spec.num_parameters
    static = 3 * 4 * parameters  # weights, two moments
    bytes_a, bytes_b = peak_bytes(a, static, device), peak_bytes(b, static, device)
    tokens = size.rows * size.length
    medians = {side: float(np.median(found[side])) for side in "ab"}
    goal = GOALS.get(mode)
    return {
        **(gpu_facts(size, batch, medians, device) if name in GPU_CASES else {}),
        "parameters": parameters,
        "batch": [size.rows, size.length],
        "tokens_per_second": {"ours": tokens / medians["a"], "baseline": tokens / medians["b"]},
        "ratio": found["ratio_median"],
        "interval": [found["ratio_low"], found["ratio_high"]],
        "cpu_ratio": found["cpu_ratio_median"],
        "goal": goal,
        "reached": None if goal is None else found["ratio_median"] >= goal,
        "rounds": len(found["a"]),
        "others": found["others"],
        "peak_mib": {"ours": bytes_a / 2**20, "baseline": bytes_b / 2**20, "before": static / 2**20},
        "peak_ratio": bytes_a / bytes_b,
        "peak_goal": MEMORY_GOAL,
        "peak_reached": bytes_a <= MEMORY_GOAL * bytes_b,
        "losses": losses[-1],
        "seconds": {"ours": rounded(found["a"]), "baseline": rounded(found["b"])},
        "machine": machine(),
    }


def gpu_facts(size: Size, batch: Batch, medians: dict[str, float], device: torch.device) -> dict[str, Any]:
    """The device, and how much of its peak each side's model takes: the same FLOP for both."""
    flop, best = batch_flops(size.spec, batch), peak_flops(device, "bf16")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cuda": torch.version.cuda,
        "peak_flops": best,
        "mfu": {side: flop / medians[key] / best for side, key in (("ours", "a"), ("baseline", "b"))},
    }


def arguments() -> argparse.Namespace:
    """The command line. Ends the program for a case or a device that is not known."""
    parser = argparse.ArgumentParser(prog="python -m bench.train_step")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    given = parser.parse_args()
    known = GPU_CASES if given.device else CASES
    given.cases = given.cases or [case for case in known if not case.startswith("tiny")]
    if unknown := [case for case in given.cases if case not in known]:
        parser.error(f"no such case: {', '.join(unknown)}. Known: {', '.join(known)}.")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    return given


def main() -> int:
    """Measure the cases named, or all. Returns 0; what is not reached stands in the table."""
    given = arguments()
    device, known = torch.device(given.device or "cpu"), GPU_CASES if given.device else CASES
    file = "train_step_cuda" if given.device else "train_step"
    threads = int(os.environ.get("BENCH_THREADS", "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    path = RESULTS / f"{file}.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8"))["cases"] if path.exists() else {}
    print(f"{'case':<30}{'ours tok/s':>11}{'theirs':>9}{'ratio':>7}  interval       cpu    goal   peak ratio")
    for case in given.cases:
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            found = measure(case, known[case], device)
        except torch.OutOfMemoryError as error:  # the others are worth their time
            print(f"{case:<30} does not fit: {str(error).partition('.')[0]}", flush=True)
            continue
        kept[case] = {**found, "threads": threads}
        speed, (low, high) = found["tokens_per_second"], found["interval"]
        mark = "  NOT REACHED" if found["reached"] is False else ""
        goal = "   - " if found["goal"] is None else f"{found['goal']:.2f}"
        used = f"   MFU {found['mfu']['ours']:.3f} {found['mfu']['baseline']:.3f}" if "mfu" in found else ""
        memory = "" if found["peak_reached"] else f"  OVER {MEMORY_GOAL}"
        print(
            f"{case:<30}{speed['ours']:>11.0f}{speed['baseline']:>9.0f}{found['ratio']:>7.3f}"
            f"  {low:.3f}-{high:.3f}  {found['cpu_ratio']:.3f}  "
            f"{goal}{mark}   {found['peak_ratio']:.3f}{memory}{used}",
            flush=True,
        )
        if given.device == "cpu":
            continue
        save(
            file,
            {
                "what": "tokens a second of a whole training step, ours by transformers'",
                "how": "alternating in one process; the median of the ratios of rounds, 95 % bootstrap",
                "note": "Other work may have shared the cores: each case tells the load when it ended.",
                "cases": {name: kept[name] for name in known if name in kept},
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
