"""What the cards of gpipe, megatron-interleaved and vocabulary-parallel measure on one GPU (their parts b).

gpipe       the largest number of layers whose step fits, with and without recomputation, batch fixed.
megatron    seconds of a layer of width 4096 by the rows of a micro-batch: rule 3's best size, and the times
            that the predictors then give for training 175B and 1T weights.
vocabulary  seconds of F, B of a layer and S, T of an eighth of 256k words at width 3072, on the simulator:
            the step with the head on all of eight ranks by that with the head on the last.
grpo        tokens a second of each phase of a step (bench/gpu_grpo.py), and the log-probabilities' gap.

`python -m bench.gpu` measures all, `python -m bench.gpu gpipe` one. Without CUDA it refuses; `--device cpu
--tiny` runs the same code on small models, whose numbers say nothing and are not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.gpu_grpo import grpo
from bench.measure import RESULTS, machine, save
from shunter.models.decoder import Decoder
from shunter.models.segments import SegmentPlan
from shunter.models.spec import DecoderSpec
from shunter.parallel.decoder import DecoderStage, Rows, decoder_stages
from shunter.parallel.executor import Executor
from shunter.parallel.measure import measure_parts
from shunter.parallel.mesh import Groups
from shunter.parallel.saved import SavedBytes
from shunter.parallel.stage import Compute, Stage
from shunter.parallel.tree import Tree
from shunter.parallel.vocabulary import VocabularyPart
from shunter.plan.megatron import rule_three
from shunter.plan.transformer import Shape, training_seconds
from shunter.schedule.action import BACKWARD, FORWARD, HEAD, SOFTMAX
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.lower import lower
from shunter.schedule.program import Node
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate
from shunter.schedule.vocabulary import parallel_vocabulary

TINY_BYTES = 1 << 19  # what a CPU may hold in the tiny form: there is no allocator to say no
MOST_LAYERS = 4096
REPEATS = 20


def spec(dim: int, layers: int, vocabulary: int, length: int) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocabulary, dim=dim, num_layers=layers, num_heads=max(1, dim // 128),
        num_kv_heads=max(1, dim // 128), head_dim=min(dim, 128), ffn_dim=dim * 8 // 3 // 32 * 32 or 32,
        max_positions=length, tied=False,
    )  # fmt: skip


def rows_of(vocabulary: int, rows: int, length: int, device: torch.device) -> Rows:
    shape = (rows, length)
    tokens = torch.randint(vocabulary, shape, device=device)
    return Rows(
        tokens,
        torch.arange(length, device=device).expand(shape),
        tokens,
        torch.full(shape, -1 / tokens.numel(), device=device),
        SegmentPlan.build(torch.zeros(shape, dtype=torch.int64, device=device)),
    )


def fits(layers: int, recompute: bool, device: torch.device, tiny: bool) -> bool:
    """Whether a forward and backward of eight micro-batches fits, each layer a stage of the one rank."""
    dim, length, rows, count = (64, 32, 2, 4) if tiny else (2048, 2048, 2, 8)
    shape = spec(dim, layers, 512 if tiny else 32768, length)
    try:
        with torch.device(device):
            decoder = Decoder(shape)
        order = schedule("interleaved-1f1b").build(1, count, chunks=layers)
        order = recomputed(order) if recompute else order
        saved = SavedBytes(decoder.parameters())
        batch = rows_of(shape.vocab_size, rows, length, device)

        def computes(module: DecoderStage) -> Compute:
            def compute(inputs: Tree, microbatch: int) -> Tree:
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    made: Tree = module(inputs, batch)
                return made

            return compute

        modules = decoder_stages(decoder, list(range(layers + 1)), list(range(layers)))
        stages = {n: Stage(computes(module), module, defer=False) for n, module in modules.items()}
        for stage in stages.values():
            stage.saved = saved if tiny else None
        Executor(lower(assemble(order)), 0, stages, None, device).run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return not tiny or saved.peak <= TINY_BYTES
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def largest(found: Callable[[int], bool]) -> int:
    """The largest number for which `found` holds, which holds below wherever it holds; 0 if it never does."""
    low, high = 0, 1
    while high <= MOST_LAYERS and found(high):
        low, high = high, 2 * high
    high = min(high, MOST_LAYERS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) else (low, middle)
    return low


def gpipe(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Layers that fit, by arm, and how many times as many recomputation allows."""
    arms = {
        name: largest(lambda layers, again=again: fits(layers, again, device, tiny))  # type: ignore[misc]
        for name, again in (("kept", False), ("recomputed", True))
    }
    return {**arms, "times": arms["recomputed"] / max(1, arms["kept"]), "paper": 318 / 82}


def megatron(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Seconds of a layer by rows, rule 3 for a pipeline of 8, and days of two trainings of the paper."""
    dim, length = (64, 32) if tiny else (4096, 2048)
    shape, budget = spec(dim, 1, 64, length), 0.05 if tiny else 1.0
    times: dict[int, tuple[float, float]] = {}
    for rows in (1, 2, 4) if tiny else (1, 2, 4, 8, 16):
        layer = measure_parts(shape, length, rows, device, "bf16", budget=budget).layer
        times[rows] = layer.forward, layer.backward
    predicted = rule_three(64, 8, times)
    best = min(predicted, key=predicted.__getitem__)
    # Forward and backward are three products of 2 x weights; recomputation adds the forward once more.
    weights = sum(p.numel() for p in Decoder(shape).layers.parameters())
    rate = 8 * weights * best * length / (2 * times[best][0] + times[best][1])
    models = {"175B": (Shape(96, 12288, 96), 300e9, 1024), "1T": (Shape(128, 25600, 160), 450e9, 3072)}
    days = {
        name: training_seconds(tokens, it.parameters, devices, rate) / 86400
        for name, (it, tokens, devices) in models.items()
    }
    return {
        "seconds": {str(rows): pair for rows, pair in times.items()},
        "rule_three": {str(rows): value for rows, value in predicted.items()},
        "best_rows": best,
        "flops_of_a_layer": rate,
        "days_at_that_rate": days,
        "paper_days": {"175B": 34, "1T": 84},
    }


def vocabulary(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Seconds of each pass, and the simulated step of eight ranks both ways."""
    ranks, count, depth = 8, 32, 4  # layers a rank
    dim, words, length = (64, 4096, 64) if tiny else (3072, 262144, 2048)
    parts = measure_parts(spec(dim, 1, 64, length), length, 1, device, "bf16", budget=0.05 if tiny else 1.0)
    passes = {algorithm: _passes(algorithm, words // ranks, dim, length, device) for algorithm in (1, 2)}
    order = schedule("1f1b").build(ranks, count)
    seconds = {(FORWARD, stage): depth * parts.layer.forward for stage in range(ranks)}
    seconds |= {(BACKWARD, stage): depth * parts.layer.backward for stage in range(ranks)}
    last, (softmax, head) = ranks - 1, passes[1]
    naive = {
        **seconds,
        (FORWARD, last): seconds[FORWARD, last] + ranks * softmax,
        (BACKWARD, last): seconds[BACKWARD, last] + ranks * head,
    }
    alone = simulate(assemble(order), Costs(naive)).elapsed
    spread = {}
    for algorithm, (softmax, head) in passes.items():
        costs = Costs({**seconds, (SOFTMAX, last): softmax, (HEAD, last): head})
        program = assemble(parallel_vocabulary(order, algorithm, costs))
        spread[f"algorithm {algorithm}"] = alone / simulate(program, costs).elapsed
    return {
        "layer": [parts.layer.forward, parts.layer.backward],
        "S_T": {f"algorithm {algorithm}": pair for algorithm, pair in passes.items()},
        "naive_step": alone,
        "times_naive": spread,
    }


def _passes(algorithm: int, words: int, dim: int, length: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of S and T of one part of the head, with collectives of one rank in between."""
    groups = Groups.create([0])
    rows = rows_of(words, 1, length, device)
    head = nn.Parameter(torch.randn(words, dim, device=device))
    part = VocabularyPart(head, head, 0, groups, 0, 0, 0, lambda _: rows, algorithm=algorithm)
    part.prepare(True, torch.bfloat16)
    node = Node(0, 0, "vocabulary", "", 0, 0)
    hidden = torch.randn(1, length, dim, device=device)
    seconds: dict[str, list[float]] = {SOFTMAX: [], HEAD: []}
    for turn in range(REPEATS // 4 if device.type == "cpu" else REPEATS):
        part._share(node, {"hidden": hidden}).wait()
        softmax = _took(lambda: part._softmax(node, {}), device)
        part._stats(node, {}).wait()
        own = _took(lambda: part._head(node, {}), device)
        if algorithm == 1:
            part._head_grad(node, {}).wait()
        part.drop()
        if turn:  # the first allocates
            seconds[SOFTMAX].append(softmax)
            seconds[HEAD].append(own)
    middle = {op: sorted(values)[len(values) // 2] for op, values in seconds.items()}
    return middle[SOFTMAX], middle[HEAD]


def _took(work: Callable[[], Tensor | None], device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    begin = now()
    work()
    return now() - begin


PARTS: dict[str, Callable[[torch.device, bool], dict[str, Any]]] = {
    "gpipe": gpipe,
    "megatron": megatron,
    "vocabulary": vocabulary,
    "grpo": grpo,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts named, or all; print and, on a GPU, keep them."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description="Parts (b) of three cards, on one GPU.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.parts if name not in PARTS]:
        print(f"error: no such part: {', '.join(unknown)}. Known: {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: this measures a GPU, and torch sees none here. --device cpu --tiny tries the code.",
            file=sys.stderr,
        )
        return 2
    if chosen.device == "cpu" and not chosen.tiny:
        print("error: these sizes are for a GPU. Add --tiny, or leave out --device cpu.", file=sys.stderr)
        return 2
    device = torch.device(chosen.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            for name in chosen.parts or list(PARTS):
                results[name] = PARTS[name](device, chosen.tiny)
                print(f"{name}: {json.dumps(results[name])}", flush=True)
        finally:
            dist.destroy_process_group()
    if not chosen.tiny:
        kept = RESULTS / "gpu.json"
        before = json.loads(kept.read_text(encoding="utf-8"))["parts"] if kept.exists() else {}
        told = {**machine(), "gpu": torch.cuda.get_device_name(device)}
        parts = {**before, **{name: {"result": found, "machine": told} for name, found in results.items()}}
        save(
            "gpu",
            {
                "what": "parts (b) of gpipe, megatron-interleaved, vocabulary-parallel, and a step of GRPO",
                "parts": parts,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
