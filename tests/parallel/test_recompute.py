"""Recomputation and micro-batches of any number: one process's gradients, draws, moments; little held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from shunter.config.errors import ShunterError
from shunter.parallel.batchnorm import DeferredBatchNorm, defer_batchnorm
from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.recompute import recomputed
from tests.parallel.layers import DIM, Layer, layers
from tests.parallel.pool import Pool
from tests.parallel.test_messages import check_skips

CPU = torch.device("cpu")
COUNTS = (1, 2, 3, 4, 7)
SAMPLES = 10  # divided by neither 3, 4 nor 7


def chunks(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Equal parts, the last ones smaller where the rows do not divide evenly."""
    return list(x.tensor_split(count))


def samples() -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(SAMPLES, 3, DIM, generator=draw, dtype=torch.float64)


def loss_of(x: torch.Tensor) -> torch.Tensor:
    """The mini-batch's mean, as a sum over the micro-batch's samples: uneven parts are weighted by it."""
    return x.square().flatten(1).sum(1).sum() / SAMPLES


def order_of(name: str, ranks: int, microbatches: int, again: bool) -> Order:
    order = schedule(name).build(ranks, microbatches)
    return recomputed(order) if again else order


class Counting(Stage):
    """Notes the most micro-batches that were held at once: their inputs, and their graphs."""

    most_inputs = most_graphs = computed = 0

    def _note(self) -> None:
        self.most_inputs = max(self.most_inputs, self.in_flight)
        self.most_graphs = max(self.most_graphs, self.graphs)

    def forward(self, microbatch: int, inputs: Tree, *, train: bool = True, light: bool = False) -> Tree:
        made = super().forward(microbatch, inputs, train=train, light=light)
        self.computed += 1
        self._note()
        return made

    def recompute(self, microbatch: int) -> None:
        super().recompute(microbatch)
        self.computed += 1
        self._note()


def on_rank(rank: int, groups: Groups, case: dict[str, Any]) -> dict[str, Any]:
    """One step of GPipe for each number of micro-batches: gradients, counts."""
    found = {}
    ranks = case["ranks"]
    for microbatches in COUNTS:
        for again in (False, True):
            module = layers(ranks)[rank]
            data = chunks(samples(), microbatches)

            def compute(inputs: Tree, m: int, module: Layer = module, data: list[Any] = data) -> Tree:
                y = module(inputs["x"] if rank else data[m])
                return {LOSS: loss_of(y)} if rank == ranks - 1 else {"x": y}

            stage = Counting(compute, module)
            program = lower(assemble(order_of("gpipe", ranks, microbatches, again)))
            Executor(program, rank, {rank: stage}, groups, CPU).run(lambda m, data=data: len(data[m]))
            found[microbatches, again] = (
                {name: p.grad for name, p in module.named_parameters()},
                (stage.most_inputs, stage.most_graphs, stage.computed),
            )
    return found


def check_gradients(pool: Pool, ranks: int) -> None:
    whole = layers(ranks)
    loss_of(nn.Sequential(*whole)(samples())).backward()
    answers = pool.run(on_rank, ranks, {"ranks": ranks})
    for rank, answer in enumerate(answers):
        for (microbatches, again), (gradients, counted) in answer.items():
            for name, parameter in whole[rank].named_parameters():
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-12)
            graphs, computed = microbatches, microbatches
            if again:  # what goes back next, the last micro-batch, is kept
                graphs, computed = 1, 2 * microbatches - 1
            assert counted == (microbatches, graphs, computed), (microbatches, again)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_are_the_whole_mini_batch_s_and_one_micro_batch_is_held(pool: Pool, ranks: int) -> None:
    check_gradients(pool, ranks)


@pytest.mark.long
def test_the_same_over_seven_ranks() -> None:
    pool = Pool(7)
    try:
        check_gradients(pool, 7)
    finally:
        pool.close()


def dropping(rank: int, groups: Groups, again: bool) -> Any:
    """Gradients, and the masks that each micro-batch saw, in a stage with dropout on either rank."""
    torch.manual_seed(7 + rank)
    module = nn.Sequential(nn.Linear(4, 64, dtype=torch.float64), nn.Dropout(0.5), nn.Linear(64, 4).double())
    masks: dict[int, list[torch.Tensor]] = {}

    def compute(inputs: Tree, m: int) -> Tree:
        x = inputs["x"] if rank else torch.ones(2, 4, dtype=torch.float64)
        dropped = module[1](module[0](x))
        masks.setdefault(m, []).append(dropped.detach() == 0)
        y = module[2](dropped)
        return {LOSS: y.square().sum()} if rank else {"x": y}

    program = lower(assemble(order_of("gpipe", 2, 3, again)))
    stage = Stage(compute, module)
    Executor(program, rank, {rank: stage}, groups, CPU).run()
    return [p.grad for p in module.parameters()], masks, torch.rand(3)


def test_dropout_is_the_same_in_the_recomputation(pool: Pool) -> None:
    both = zip(pool.run(dropping, 2, True), pool.run(dropping, 2, False), strict=True)
    for with_it, without in both:
        for microbatch, masks in with_it[1].items():
            assert len(masks) == (1 if microbatch == 2 else 2)
            assert all(torch.equal(mask, without[1][microbatch][0]) for mask in masks)
        assert not torch.equal(with_it[1][0][0], with_it[1][1][0])
        torch.testing.assert_close(with_it[0], without[0], rtol=1e-12, atol=1e-12)
        assert torch.equal(with_it[2], without[2])  # and what is drawn later is the same, too


@pytest.mark.parametrize("name", ["1f1b", "zb1p", "zbv", "interleaved-1f1b", "dualpipev"])
def test_with_every_kind_of_schedule(pool: Pool, name: str) -> None:
    from tests.parallel.test_executor import compare

    order = order_of(name, 2, 4, True)
    compare(pool, lower(assemble(order)), order.stages, 4, 1, list(range(order.stages + 1)))


def test_a_skip_past_a_stage_with_recomputation(pool: Pool) -> None:
    check_skips(pool, again=True)


def norms(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.BatchNorm1d(5, momentum=None))


@pytest.mark.parametrize("again", [False, True])
def test_running_moments_are_those_of_the_whole_mini_batch(pool: Pool, again: bool) -> None:
    """The first norm's inputs do not depend on the split, so its moments are the unsplit module's."""
    steps = [torch.randn(11, 4) * 3 + 20 for _ in range(2)]
    whole = norms()
    for x in steps:
        whole(x)
    module = defer_batchnorm(norms())
    assert module.state_dict().keys() == whole.state_dict().keys()
    for x in steps:
        parts = chunks(x, 3)
        stage = Stage(lambda inputs, m, parts=parts: {LOSS: module(parts[m]).square().sum()}, module)
        executor = Executor(lower(assemble(order_of("gpipe", 1, 3, again))), 0, {0: stage}, None, CPU)
        before = module[1].running_mean.clone()
        executor.run()
        assert not torch.equal(before, module[1].running_mean)
    for number in (1, 3):
        assert isinstance(module[number], DeferredBatchNorm)
        assert int(module[number].num_batches_tracked) == 2
    torch.testing.assert_close(module[1].running_mean, whole[1].running_mean)
    torch.testing.assert_close(module[1].running_var, whole[1].running_var)
    # Evaluation counts nothing, and takes the running moments.
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    Stage(lambda inputs, m: {LOSS: module(steps[0]).sum()}, module).forward(0, {}, train=False)
    assert module[1]._count == 0
    torch.testing.assert_close(module.state_dict(), kept)
    module.eval()
    x = torch.randn(3, 5)
    torch.testing.assert_close(module[1](x), whole.eval()[1](x))


def test_a_cumulative_average_and_a_failed_step() -> None:
    norm = DeferredBatchNorm(2, momentum=None)
    reference = nn.BatchNorm1d(2, momentum=None)
    for _ in range(3):
        x = torch.randn(8, 2)
        reference(x)
        norm(x[:3])
        norm(x[3:])
        norm.commit()
        norm.commit()  # nothing is left to commit
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())
    stage = Stage(lambda inputs, m: {LOSS: norm(torch.randn(4, 2)).sum()}, norm)
    stage.forward(0, {})
    stage.drop()
    stage.commit()
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())


def test_an_input_changed_in_place_is_refused() -> None:
    module = nn.Linear(2, 2)
    stage = Stage(lambda inputs, m: {"x": module(inputs["x"].mul_(2))}, module)
    with pytest.raises(ShunterError, match="changes its input 'x' in place"):
        stage.forward(0, {"x": torch.ones(1, 2)}, light=True)
