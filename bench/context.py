"""Context parallelism on two ranks: each kind's time against half of one process's, and its bytes.

Forward and backward of one attention, one thread a rank. The baseline is torch's own attention over the whole
row in one of the two processes while the other waits; half of it is what two ranks would take if parting cost
nothing, so 1.00 of perfect is perfect. Documents: rows cut in eight, against what one process does with them.

work      CPU seconds of one process by those of both ranks together: what parting adds to the arithmetic. It
          varies less than time on a shared machine, and does not see what waits.
balance   mean CPU seconds of a rank by those of the busier one.

The two ranks share one machine: what crosses a network in earnest is a copy through memory here, so times say
what the arithmetic and the order of messages cost, bytes what a network would carry.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bench.measure import Others, interval, machine, on_ranks, rounded, save
from shunter.layout.context_traffic import traffic
from shunter.models.segments import SegmentPlan, segment_attention
from shunter.parallel.context.attend import ContextSight, Kind, attend
from shunter.parallel.context.zigzag import zigzag
from shunter.parallel.counted import counted
from shunter.parallel.mesh import Peers

RANKS, ROUNDS, WARM = 2, 7, 1
HEADS, KV_HEADS, WIDTH = 4, 2, 64
KINDS: tuple[Kind, ...] = ("ring", "gather", "ulysses")
CASES = {"1024": (1024, False), "4096": (4096, False), "4096 documents": (4096, True)}
CALM = 0.1  # largest share of the machine that others may use while a kept result is measured


def both_passes(run: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> None:
    torch.autograd.grad(run(*inputs), inputs, grad)


def alone(segments: Tensor | None) -> Callable[..., Tensor]:
    """What one process does with whole rows."""
    if segments is None:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    plan, group = SegmentPlan.build(segments), HEADS // KV_HEADS

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return segment_attention(
            q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1), plan
        )

    return run


def worker(rank: int, case: str) -> dict[str, Any]:
    """Times all sides in turn."""
    peers = Peers(dist.group.WORLD, tuple(range(RANKS)), rank)
    length, documents = CASES[case]
    draw = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, heads, length, WIDTH, generator=draw) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    grad = torch.randn(1, HEADS, length, WIDTH, generator=draw)
    segments = torch.arange(length)[None] * 8 // length if documents else None
    mine = zigzag(length, RANKS)[rank]
    local = [x[:, :, mine].contiguous().requires_grad_() for x in whole]
    local_grad = grad[:, :, mine].contiguous()
    whole = [x.requires_grad_() for x in whole]
    single = alone(segments)
    sight = ContextSight(length, RANKS, segments)
    sides: dict[str, Callable[[], None]] = {
        "alone": lambda: both_passes(single, whole, grad) if rank == 0 else None
    }
    for kind in KINDS:

        def part(kind: Kind = kind) -> None:
            both_passes(lambda q, k, v: attend(q, k, v, sight, peers, kind=kind), local, local_grad)

        sides[kind] = part
    sent = {}
    for kind in KINDS:
        with counted() as found:
            sides[kind]()
        sent[kind] = found.total()
    every: list[Any] = [None] * RANKS
    dist.all_gather_object(every, sent)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    used: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + WARM):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            dist.barrier()
            begin, busy = time.perf_counter(), time.process_time()
            sides[name]()
            worked = time.process_time() - busy
            dist.barrier()
            if turn >= WARM:
                seconds[name].append(time.perf_counter() - begin)
                used[name].append(worked)
    cpu: list[Any] = [None] * RANKS
    dist.all_gather_object(cpu, used)
    return {"seconds": seconds, "bytes": every, "cpu": cpu}


def measure(case: str) -> dict[str, Any]:
    """Each kind's share of the perfect speed, and bytes of each rank beside the formula's."""
    found = on_ranks(RANKS, worker, case)
    length, documents = CASES[case]
    kinds = {}
    for kind in KINDS:
        pairs = zip(found["seconds"]["alone"], found["seconds"][kind], strict=True)
        middle, low, high = interval([single / RANKS / part for single, part in pairs])
        told = [
            traffic(kind, 1, length, HEADS, KV_HEADS, WIDTH, RANKS, 4, index).total for index in range(RANKS)
        ]
        sent = [each[kind] for each in found["bytes"]]
        # Documents shorten a ring's way; the formula is that of rows of one document.
        assert sent == told or (documents and kind == "ring"), (kind, sent, told)
        cpu = [statistics.median(each[kind]) for each in found["cpu"]]
        kinds[kind] = {
            "of_perfect": middle, "interval": [low, high],
            "work": statistics.median(found["cpu"][0]["alone"]) / sum(cpu),
            "balance": sum(cpu) / RANKS / max(cpu), "seconds": rounded(found["seconds"][kind]),
            "bytes": sent, "bytes_of_one_document": told,
        }  # fmt: skip
    return {"case": case, "alone": rounded(found["seconds"]["alone"]), "kinds": kinds}


def main() -> int:
    """Measure the cases named, or all; print them, and keep them if the machine was calm."""
    chosen = sys.argv[1:] or list(CASES)
    if unknown := [name for name in chosen if name not in CASES]:
        print(f"error: no such case: {', '.join(unknown)}. Known: {', '.join(CASES)}.", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"
    cases, watch = {}, Others()
    print(
        f"{'case':<16}{'kind':<9}{'of perfect':>11}  95 %        {'work':>6}{'balance':>9}   MiB of each rank"
    )
    for case in chosen:
        cases[case] = found = measure(case)
        for kind, one in found["kinds"].items():
            low, high = one["interval"]
            sizes = " ".join(f"{size / 2**20:7.2f}" for size in one["bytes"])
            print(
                f"{case:<16}{kind:<9}{one['of_perfect']:>11.2f}  {low:.2f}..{high:.2f}  {one['work']:>6.2f}"
                f"{one['balance']:>9.2f}   {sizes}",
                flush=True,
            )
    others = watch.share()
    if others > CALM:
        print(f"Others used {others:.0%} of the machine: not kept.")
        return 0
    what = "attention over two ranks: half of one process's seconds by theirs, and bytes"
    save("context", {"what": what, "others": others, "cases": cases, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
