"""The executor: against torch's runtime, against the simulator, and its backward in halves.

overhead   the same stages, the same schedule, the same two gloo ranks, step by step in turn: seconds of
           ours by seconds of torch.distributed.pipelining's.
predicted  measured step time by simulated step time. Padded: each operation sleeps until a fixed time is
           over, so that ranks do not compete for cores. Unpadded: real work on two ranks, costs taken from
           the medians of another schedule's measured timeline.
halves     (I + W) / B of a Transformer block's backward, plain, with recomputation, and sharded by FSDP2.

`python -m bench.pipeline` measures all, `python -m bench.pipeline overhead` one part.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.utils.checkpoint import checkpoint

from bench.measure import RESULTS, WAIT, alternate, machine, on_ranks, rounded, save
from shunter.parallel.clock import gather_timeline, offset
from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.rehearse import rehearse
from shunter.parallel.sharded import hand_over
from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree
from shunter.record.timeline import Timeline
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.simulate import simulate

CPU = torch.device("cpu")
ROUNDS = 31
OVERHEAD = {
    "gpipe-fifo": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved-1f1b": ScheduleInterleaved1F1B,
    "zb1p": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}
SIZES = {"tiny": (32, 4), "small": (128, 32), "medium": (256, 128)}  # width, rows of a micro-batch
PADDED = ("gpipe", "1f1b", "interleaved-1f1b", "looped-bfs", "zb1p", "zb2p", "zbv", "v-half", "v-min")
FORWARD_PAD, HALF_PAD = 0.06, 0.06  # seconds of a rank, split over its stages
WORKED = 0.2  # largest share of a pad that real work may take, else ranks that share cores slow each other
TRIES = 3  # of a row, where something else on the machine made real work take more


def block(width: int, seed: int) -> nn.Module:
    """Two layers with a bias, as many as a Transformer's feed-forward part."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def worker(rank: int, world: int, task: str, arguments: dict[str, Any]) -> Any:
    """One rank's part of a task."""
    return TASKS[task](rank, Groups.create(range(world), timeout=WAIT), **arguments)


def spread(task: str, world: int, **arguments: Any) -> Any:
    """The task on `world` fresh processes."""
    return on_ranks(world, worker, world, task, arguments)


def overhead(rank: int, groups: Groups, name: str, size: str, microbatches: int) -> dict[str, Any]:
    """Ours against torch's runtime, whole steps in turn."""
    width, rows = SIZES[size]
    order = schedule(name).build(2, microbatches)
    mine = [stage for stage, holder in enumerate(order.placement) if holder == rank]
    data = torch.randn(microbatches * rows, width, generator=torch.Generator().manual_seed(0))
    parts = data.chunk(microbatches)
    last = order.stages - 1

    def loss_of(y: Tensor) -> Tensor:
        return y.square().mean()

    stages = {}
    for number in mine:
        module = block(width, number)

        def compute(inputs: Tree, m: int, module: nn.Module = module, number: int = number) -> Tree:
            y = module(inputs["x"] if number else parts[m])
            return {LOSS: loss_of(y)} if number == last else {"x": y}

        stages[number] = Stage(compute, module)
    executor = Executor(lower(assemble(order)), rank, stages, groups, CPU)
    theirs = [PipelineStage(block(width, number), number, order.stages, CPU) for number in mine]
    kind = OVERHEAD[name]
    single = name in ("gpipe-fifo", "1f1b")
    runtime = kind(
        theirs[0] if single else theirs,
        microbatches,
        loss_fn=lambda y, target: loss_of(y),
        scale_grads=False,
    )
    target = torch.zeros(microbatches, 1)
    has_loss = last in mine

    def ours() -> None:
        executor.run()
        for stage in stages.values():
            stage.module.zero_grad()

    def other() -> None:
        arguments = (data,) if 0 in mine else ()
        if has_loss:
            runtime.step(*arguments, target=target)
        else:
            runtime.step(*arguments)
        for stage in theirs:
            stage.submod.zero_grad()

    def together(side: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            dist.barrier()
            side()

        return run

    # Both sides compute the same before they are timed.
    executor.run()
    runtime.step(*((data,) if 0 in mine else ()), **({"target": target} if has_loss else {}))
    for number, stage in zip(mine, theirs, strict=True):
        ours_grads = [p.grad for p in stages[number].module.parameters()]
        for mine_grad, their_grad in zip(ours_grads, stage.submod.parameters(), strict=True):
            torch.testing.assert_close(mine_grad, their_grad.grad, rtol=1e-4, atol=1e-6)
    found = alternate(together(ours), together(other), ROUNDS, 3)
    return {
        "schedule": name,
        "size": size,
        "microbatches": microbatches,
        # alternate's ratio is of the baseline's seconds by ours.
        "ratio": 1 / found["ratio_median"],
        "interval": [1 / found["ratio_high"], 1 / found["ratio_low"]],
        "seconds": {"ours": rounded(found["a"]), "torch": rounded(found["b"])},
    }


def padded(rank: int, groups: Groups, name: str, microbatches: int) -> dict[str, Any]:
    """Seconds of a step with padded stages, and the largest share that real work has of a pad."""
    order = schedule(name).build(len(groups.ranks), microbatches)
    costs = Costs.even(order.placement, FORWARD_PAD, HALF_PAD, HALF_PAD)
    found = rehearse(order, costs, groups, rank, repeats=5)
    return {"seconds": found["seconds"], "worked": found["worked"]}


def unpadded(rank: int, groups: Groups, names: Sequence[str], microbatches: int) -> dict[str, Any]:
    """Measured seconds of each schedule, and each one's timeline."""
    found: dict[str, Any] = {}
    walks = {}
    for name in names:
        order = schedule(name).build(2, microbatches)
        stages = _toy_stages(order, rank, 512, 256, microbatches)
        walks[name] = Executor(lower(assemble(order)), rank, stages, groups, CPU)
    assert groups.up is not None
    shift = offset(groups.up, groups.ranks, rank, CPU)
    for turn in range(9):
        for name, executor in walks.items():
            dist.barrier()
            executor.clock.start()
            executor.run()
            spans = executor.clock.stop()
            timeline = gather_timeline(spans, shift, groups.peers(rank), CPU)
            if timeline is not None and turn:
                found.setdefault(name, []).append(timeline.to_json())
    return found


def _toy_stages(order: Order, rank: int, width: int, rows: int, microbatches: int) -> dict[int, Stage]:
    last = order.stages - 1
    data = torch.randn(microbatches, rows, width, generator=torch.Generator().manual_seed(0))
    stages: dict[int, Stage] = {}
    for number in (stage for stage, holder in enumerate(order.placement) if holder == rank):
        share = 1 / order.placement.count(rank)
        layers = max(1, round(4 * share))
        module = nn.Sequential(*(block(width, 10 * number + i) for i in range(layers)))

        def compute(inputs: Tree, m: int, module: nn.Module = module, number: int = number) -> Tree:
            y = module(inputs["x"] if number else data[m])
            return {LOSS: y.square().mean()} if number == last else {"x": y}

        stages[number] = Stage(compute, module)
    return stages


def halves() -> dict[str, Any]:
    """(I + W) / B of a stage: plain and with recomputation in one process, sharded by FSDP2 over two."""
    return {
        "plain": _halves(nn.Sequential(*(block(512, seed) for seed in range(4))), False),
        "recomputed": _halves(nn.Sequential(*(block(512, seed) for seed in range(4))), True),
        "fsdp": spread("fsdp", 2)["ratio"],
    }


def fsdp(rank: int, groups: Groups) -> dict[str, Any]:
    """As `_halves`, of a stage whose weights are sharded over two ranks and gathered before its first use."""
    assert groups.up is not None
    mesh = DeviceMesh.from_group(groups.up, "cpu")
    module = nn.Sequential(*(block(512, seed) for seed in range(4)))
    for part in module:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    hand_over(module)
    return {"ratio": _halves(module, False)}


def _halves(module: nn.Module, recompute: bool) -> float:
    x = torch.randn(512, 512)

    def compute(inputs: Tree, m: int) -> Tree:
        y = checkpoint(module, inputs["x"], use_reentrant=False) if recompute else module(inputs["x"])
        return {LOSS: y.square().mean()}

    stage = Stage(compute, module)
    seconds: dict[str, list[float]] = {"whole": [], "halves": []}
    for turn in range(46):
        for kind in ("whole", "halves") if turn % 2 else ("halves", "whole"):
            stage.forward(0, {"x": x.clone().requires_grad_()})
            begin = time.perf_counter()
            if kind == "whole":
                stage.backward(0, {})
            else:
                stage.input_grad(0, {})
                stage.weight_grad(0)
            if turn > 4:
                seconds[kind].append(time.perf_counter() - begin)
    # Under recomputation the first half holds the forward again, as the whole does.
    return statistics.median(a / b for a, b in zip(seconds["halves"], seconds["whole"], strict=True))


TASKS: dict[str, Callable[..., Any]] = {
    "overhead": overhead,
    "padded": padded,
    "unpadded": unpadded,
    "fsdp": fsdp,
}


def measure_overhead() -> list[dict[str, Any]]:
    rows = []
    print(f"{'schedule':<18}{'size':<8}{'ours / torch':>13}  95 %")
    for name in OVERHEAD:
        for size in SIZES:
            one = spread("overhead", 2, name=name, size=size, microbatches=8)
            rows.append(one)
            low, high = one["interval"]
            print(f"{name:<18}{size:<8}{one['ratio']:13.2f}  {low:.2f}..{high:.2f}", flush=True)
    return rows


def measure_padded() -> list[dict[str, Any]]:
    rows = []
    print(f"{'schedule':<18}{'ranks':>5}{'measured':>10}{'simulated':>11}{'error':>8}{'work/pad':>10}")
    for world in (2, 4, 6):
        for name in PADDED:
            microbatches = 2 * world
            one = _sleeping(name, world, microbatches)
            order = schedule(name).build(world, microbatches)
            costs = Costs.even(order.placement, FORWARD_PAD, HALF_PAD, HALF_PAD)
            simulated = simulate(assemble(order), costs).elapsed
            measured = statistics.median(one["seconds"])
            row = {
                "schedule": name, "ranks": world, "microbatches": microbatches, "measured": measured,
                "simulated": simulated, "error": measured / simulated - 1, "worked": one["worked"],
            }  # fmt: skip
            rows.append(row)
            print(
                f"{name:<18}{world:>5}{measured:>9.3f}s{simulated:>10.3f}s{row['error']:>8.1%}"
                f"{one['worked']:>10.0%}",
                flush=True,
            )
    return rows


def _sleeping(name: str, world: int, microbatches: int) -> dict[str, Any]:
    """A row whose stages did nothing but sleep, nearly. Raises RuntimeError if none of some tries is such."""
    shares = []
    for _ in range(TRIES):
        one: dict[str, Any] = spread("padded", world, name=name, microbatches=microbatches)
        if one["worked"] < WORKED:
            return one
        shares.append(f"{one['worked']:.0%}")
    raise RuntimeError(
        f"{name} on {world} ranks: real work took {', '.join(shares)} of a pad, not under {WORKED:.0%}; "
        "measure on a machine that does less besides"
    )


def costs_from(timelines: Sequence[Timeline]) -> dict[tuple[str, int], float]:
    """Median seconds of each operation on each stage."""
    samples: dict[tuple[str, int], list[float]] = {}
    for timeline in timelines:
        for span in timeline:
            samples.setdefault((span.args["op"], span.args["stage"]), []).append(span.seconds)
    return {key: statistics.median(values) for key, values in samples.items()}


def measure_unpadded() -> list[dict[str, Any]]:
    """1F1B's costs predict GPipe, ZB1P's its relatives: halves cost otherwise than the whole."""
    names = ("1f1b", "gpipe", "gpipe-fifo", "zb1p", "zb2p")
    found = spread("unpadded", 2, names=names, microbatches=8)
    timelines = {name: [Timeline.from_json(one) for one in found[name]] for name in names}
    whole, split = costs_from(timelines["1f1b"]), costs_from(timelines["zb1p"])
    seconds = {**whole, **{key: value for key, value in split.items() if key[0] in (INPUT, WEIGHT)}}
    assert {op for op, _ in seconds} == {FORWARD, BACKWARD, INPUT, WEIGHT}
    rows = []
    print(f"{'schedule':<18}{'measured':>10}{'simulated':>11}{'error':>8}")
    for name in names:
        simulated = simulate(assemble(schedule(name).build(2, 8)), Costs(seconds)).elapsed
        measured = statistics.median(timeline.elapsed for timeline in timelines[name])
        rows.append({"schedule": name, "measured": measured, "simulated": simulated,
                     "error": measured / simulated - 1})  # fmt: skip
        print(f"{name:<18}{measured:>9.3f}s{simulated:>10.3f}s{rows[-1]['error']:>8.1%}", flush=True)
    return rows


PARTS: dict[str, Callable[[], Any]] = {
    "overhead": measure_overhead,
    "padded": measure_padded,
    "unpadded": measure_unpadded,
    "halves": halves,
}


def main() -> int:
    """Measure the parts named, or all; print and keep them."""
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        print(f"error: no such part: {', '.join(unknown)}. Known: {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    kept = RESULTS / "pipeline.json"
    parts: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["parts"] if kept.exists() else {}
    for name in chosen:
        print(f"-- {name}", flush=True)
        parts[name] = {"result": PARTS[name](), "machine": machine()}
        if name == "halves":
            print(parts[name]["result"])
        save(
            "pipeline",
            {
                "what": "the executor: ours / torch, measured / simulated, (I + W) / B",
                "goals": {"overhead": 1.0, "padded": 0.05, "unpadded": 0.10, "halves": 1.05},
                "parts": parts,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
