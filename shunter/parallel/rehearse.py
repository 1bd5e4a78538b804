"""A schedule tried on real processes whose stages sleep: what it costs besides the work itself.

Sleeps stand for work where ranks share cores: ranks that compute would slow each other down.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shunter.parallel.clock import gather_timeline, offset
from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import LOSS, Compute, Stage
from shunter.parallel.tree import Tree
from shunter.record.timeline import Timeline
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, RECOMPUTE, WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.costs import Costs
from shunter.schedule.lower import lower
from shunter.schedule.order import Order

CPU = torch.device("cpu")
WIDTH, ROWS = 16, 2  # of the small real work inside each pad
T = TypeVar("T")


class Padded(Stage):
    """Each operation sleeps until its time is over. seconds: of each operation; 0 where it has none.

    worked: the largest share of a pad that real work took.
    """

    def __init__(self, compute: Compute, module: nn.Module, seconds: Mapping[str, float]) -> None:
        super().__init__(compute, module)
        self.seconds = seconds
        self.worked = 0.0

    def _pad(self, op: str, work: Callable[[], T]) -> T:
        begin, wanted = time.perf_counter(), self.seconds.get(op, 0.0)
        made = work()
        if wanted:
            self.worked = max(self.worked, (time.perf_counter() - begin) / wanted)
        while (left := begin + wanted - time.perf_counter()) > 0:
            time.sleep(left)
        return made

    def forward(self, microbatch: int, inputs: Tree, *, train: bool = True, light: bool = False) -> Tree:
        whole = super().forward
        return self._pad(FORWARD, lambda: whole(microbatch, inputs, train=train, light=light))

    def recompute(self, microbatch: int) -> None:
        whole = super().recompute
        self._pad(RECOMPUTE, lambda: whole(microbatch))

    def backward(self, microbatch: int, grads: Tree) -> Tree:
        whole = super().backward
        return self._pad(BACKWARD, lambda: whole(microbatch, grads))

    def input_grad(self, microbatch: int, grads: Tree) -> Tree:
        whole = super().input_grad
        return self._pad(INPUT, lambda: whole(microbatch, grads))

    def weight_grad(self, microbatch: int) -> None:
        whole = super().weight_grad
        self._pad(WEIGHT, lambda: whole(microbatch))


def padded_stages(order: Order, rank: int, costs: Costs, seed: int) -> dict[int, Padded]:
    """This rank's stages: two small layers each, padded to their costs."""
    last = order.stages - 1
    draw = torch.Generator().manual_seed(seed)
    data = torch.randn(order.microbatches, ROWS, WIDTH, generator=draw)
    stages = {}
    for number in (stage for stage, holder in enumerate(order.placement) if holder == rank):
        module = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

        def compute(inputs: Tree, m: int, module: nn.Module = module, number: int = number) -> Tree:
            y: Tensor = module(inputs["x"] if number else data[m])
            return {LOSS: y.square().mean()} if number == last else {"x": y}

        seconds = {op: costs.of(op, number) for op in (FORWARD, RECOMPUTE, BACKWARD, INPUT, WEIGHT)}
        stages[number] = Padded(compute, module, seconds)
    return stages


def rehearse(
    order: Order, costs: Costs, groups: Groups, rank: int, *, repeats: int, seed: int = 0
) -> dict[str, Any]:
    """Run the order `repeats` times, after once to get warm. Every rank calls it.

    Returns, as JSON values: `seconds` of each step between two barriers; `idle`, the share of the ranks' time
    in which they computed nothing, in each step; `costs`, the median seconds of each [operation, stage];
    `worked`, the largest share of a pad that was real work; `timeline` of the step of median length. All but
    `seconds` and `worked` on rank 0 only.
    """
    stages = padded_stages(order, rank, costs, seed)
    executor = Executor(lower(assemble(order)), rank, stages, groups, CPU)
    group = groups.up
    assert group is not None
    shift = offset(group, groups.ranks, rank, CPU)
    seconds: list[float] = []
    timelines: list[Timeline] = []
    for turn in range(repeats + 1):
        if turn == 1:  # what takes time once is over
            for stage in stages.values():
                stage.worked = 0.0
        dist.barrier(group)
        begin = time.perf_counter()
        executor.clock.start()
        executor.run()
        dist.barrier(group)
        took = time.perf_counter() - begin
        timeline = gather_timeline(executor.clock.stop(), shift, groups.peers(rank), CPU)
        if turn:
            seconds.append(took)
            if timeline is not None:
                timelines.append(timeline)
    worked = torch.tensor([max((stage.worked for stage in stages.values()), default=0.0)])
    dist.all_reduce(worked, dist.ReduceOp.MAX, group=group)
    found: dict[str, Any] = {"seconds": seconds, "worked": float(worked)}
    if timelines:
        middle = sorted(timelines, key=lambda timeline: timeline.elapsed)[len(timelines) // 2]
        found |= {
            "idle": [_idle(timeline, order.ranks) for timeline in timelines],
            "costs": [[op, stage, value] for (op, stage), value in _medians(timelines).items()],
            "timeline": middle.to_json(),
        }
    return found


def _idle(timeline: Timeline, ranks: int) -> float:
    busy = sum(timeline.busy((rank, "compute")) for rank in range(ranks))
    return 1 - busy / (ranks * timeline.elapsed)


def _medians(timelines: list[Timeline]) -> dict[tuple[str, int], float]:
    samples: dict[tuple[str, int], list[float]] = {}
    for timeline in timelines:
        for span in timeline:
            samples.setdefault((span.args["op"], span.args["stage"]), []).append(span.seconds)
    return {key: statistics.median(values) for key, values in samples.items()}
