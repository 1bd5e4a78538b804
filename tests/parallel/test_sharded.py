"""Pipelines of sharded stages: gradients of one process, whatever else is sharded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from shunter.config.errors import ShunterError
from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.sharded import hand_over, sharded_handlers
from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree
from shunter.schedule.action import RESHARD, WEIGHT, Action
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.check import check
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from tests.parallel.pool import Pool

CPU = torch.device("cpu")
WIDTH = 8


class Layer(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.recompute = recompute

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.recompute:
            return checkpoint(self.inner, x, use_reentrant=False)
        return self.inner(x)


def layers(count: int, recompute: bool) -> list[Layer]:
    torch.manual_seed(0)
    return [Layer(recompute).double() for _ in range(count)]


def data(microbatch: int, replica: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(10 * microbatch + replica)
    return torch.randn(3, WIDTH, generator=draw, dtype=torch.float64)


@cache
def grid() -> tuple[list[Groups], list[Any]]:
    """Two pipelines {0, 2} and {1, 3} whose stages are sharded over {0, 1} and {2, 3}; made once."""
    return [Groups.create(ranks) for ranks in ((0, 2), (1, 3))], [dist.new_group(r) for r in ([0, 1], [2, 3])]


@contextmanager
def counted(*names: str) -> Iterator[dict[str, int]]:
    """How often FSDP calls these collectives."""
    counts = dict.fromkeys(names, 0)

    def counting(name: str) -> Any:
        whole = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return whole(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(dist, name, counting(name))
        yield counts


def task(rank: int, _: Groups, case: dict[str, Any]) -> dict[str, Any]:
    pipelines, shards = grid()
    replica, place = rank % 2, rank // 2
    order = schedule(case["schedule"]).build(2, 4)
    whole = layers(order.stages, case["recompute"])
    mesh = DeviceMesh.from_group(shards[place], "cpu")
    stages, modules = {}, {}
    for number in (stage for stage, holder in enumerate(order.placement) if holder == place):
        module = nn.Sequential(whole[number])
        fully_shard(module[0], mesh=mesh)
        fully_shard(module, mesh=mesh)
        hand_over(module)

        def compute(inputs: Tree, m: int, module: nn.Module = module, number: int = number) -> Tree:
            y = module(inputs["x"] if number else data(m, replica))
            return {LOSS: y.square().sum()} if number == order.stages - 1 else {"x": y}

        stages[number], modules[number] = Stage(compute, module), module
    program = lower(assemble(order), shard=True, reduce=True)
    executor = Executor(program, place, stages, pipelines[replica], CPU, handlers=sharded_handlers(stages))
    for _ in range(2):  # buffers and FSDP's own state are used again
        for module in modules.values():
            module.zero_grad()
        with counted("all_gather_single", "reduce_scatter_single") as counts:
            executor.run()
    found: dict[str, Any] = {"counts": (counts, len(stages))}
    for number, module in modules.items():
        for name, parameter in module[0].named_parameters():
            assert len(parameter.to_local()) <= -(-len(parameter) // 2)  # sharded again
            found[f"{number}.{name}"] = parameter.grad.full_tensor()
    return found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["1f1b", "zb1p", "zbv"])
def test_pipeline_of_sharded_stages(pool: Pool, name: str, recompute: bool) -> None:
    """Two pipelines with half of the data each: gradients are the sum over both, as in one process."""
    order = schedule(name).build(2, 4)
    whole = layers(order.stages, False)
    for replica in range(2):
        for microbatch in range(4):
            x = data(microbatch, replica)
            for layer in whole:
                x = layer(x)
            x.square().sum().backward()
    answers = pool.run(task, 4, {"schedule": name, "recompute": recompute})
    for answer in answers:  # gathered once and reduced once a step, not once a micro-batch
        counts, stages = answer.pop("counts")
        assert counts == {"all_gather_single": stages, "reduce_scatter_single": stages}
    found = {key: value for answer in answers for key, value in answer.items()}
    assert len(found) == sum(1 for layer in whole for _ in layer.parameters())
    for number, layer in enumerate(whole):
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(found[f"{number}.{key}"], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_reshard_before_the_last_weight_gradient_is_refused() -> None:
    """FSDP2 would lose that gradient without a word."""
    program = lower(assemble(schedule("zb1p").build(2, 4)), shard=True, reduce=True)
    rows = [list(program.actions(rank)) for rank in range(2)]
    last = max(i for i, action in enumerate(rows[1]) if action.op == WEIGHT)
    rows[1].remove(Action(1, RESHARD))
    rows[1].insert(last, Action(1, RESHARD))
    with pytest.raises(ShunterError, match="1RESHARD comes before 1 gradients of the stage's weights"):
        check(assemble(Order((0, 1), tuple(map(tuple, rows)), 4)))


def test_what_is_not_sharded_cannot_be_handed_over() -> None:
    with pytest.raises(ValueError, match="fully_shard was not applied"):
        hand_over(nn.Linear(2, 2))
