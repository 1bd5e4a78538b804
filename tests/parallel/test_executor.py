"""Whatever the program, gradients and losses are those of one process."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, WEIGHT, Action
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import SCHEDULES, schedule
from shunter.schedule.check import check
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.program import Program
from tests.draws import examples, some
from tests.parallel.layers import batches, layers, reference, stages_of
from tests.parallel.pool import Pool

CPU = torch.device("cpu")


def one_step(rank: int, groups: Groups, case: dict[str, Any]) -> dict[str, Any]:
    """Two steps on a rank: gradients of the second (buffers are used again), losses and what is held."""
    program: Program = case["program"]
    whole = layers(case["cut"][-1], case["seed"])
    data = batches(case["microbatches"], case["seed"], case["uneven"])
    mine = sorted({node.stage for node in program.nodes if node.rank == rank})
    stages = stages_of(whole, case["cut"], data, mine)
    executor = Executor(program, rank, stages, groups, CPU)
    for _ in range(2):
        for layer in whole:
            layer.zero_grad()
        losses = executor.run(lambda microbatch: len(data[microbatch]))
    assert all(stage.in_flight == 0 for stage in stages.values())
    gradients = {
        f"{index}.{name}": parameter.grad
        for stage in mine
        for index in range(case["cut"][stage], case["cut"][stage + 1])
        for name, parameter in whole[index].named_parameters()
    }
    return {"gradients": gradients, "losses": {m: loss.item() for m, loss in losses.items()}}


def compare(pool: Pool, program: Program, stages: int, microbatches: int, seed: int, cut: list[int]) -> None:
    case = {"program": program, "cut": cut, "microbatches": microbatches, "seed": seed, "uneven": seed % 2}
    expected, losses = reference(layers(cut[-1], seed), batches(microbatches, seed, bool(seed % 2)))
    found: dict[str, torch.Tensor] = {}
    told: dict[int, float] = {}
    for answer in pool.run(one_step, program.ranks, case):
        found.update(answer["gradients"])
        told.update(answer["losses"])
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert [told[m] for m in range(microbatches)] == pytest.approx(losses, rel=1e-12)


def random_cut(stages: int, seed: int) -> list[int]:
    """Each stage has one layer or two, and where there are several stages not all have as many."""
    draw = random.Random(seed)
    sizes = [draw.choice([1, 1, 2]) for _ in range(stages)]
    if len(set(sizes)) == 1:
        sizes[draw.randrange(stages)] = 3 - sizes[0]
    return [0, *accumulate(sizes)]


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "forward-only"])
@some(("ranks", "microbatches"), [(1, 2), (2, 4), (4, 8), (2, 5), (2, 7), (4, 12), (4, 9)], every=3)
def test_every_schedule_has_the_gradients_of_one_process(
    pool: Pool, name: str, ranks: int, microbatches: int
) -> None:
    """Stages are of one and of two layers, so no cut of several stages is even."""
    order = schedule(name).build(ranks, microbatches)
    program = lower(assemble(order))
    cut = random_cut(order.stages, ranks + microbatches)
    if order.stages > 1:
        assert {b - a for a, b in pairwise(cut)} == {1, 2}
    compare(pool, program, order.stages, microbatches, microbatches, cut)


def random_order(seed: int) -> Order:
    """Stages anywhere, and each rank's actions in any order that can be run."""
    draw = random.Random(seed)
    ranks, microbatches = draw.randint(1, 4), draw.randint(1, 5)
    stages = draw.randint(ranks, 6)
    placement = [*range(ranks), *(draw.randrange(ranks) for _ in range(stages - ranks))]
    draw.shuffle(placement)
    halves = [draw.random() < 0.5 for _ in range(stages)]
    actions: list[list[Action]] = [[] for _ in range(ranks)]
    todo: dict[Action, set[Action]] = {}
    for microbatch in range(microbatches):
        for stage in range(stages):
            forward = Action(stage, FORWARD, microbatch)
            back = Action(stage, INPUT if halves[stage] else BACKWARD, microbatch)
            todo[forward] = {Action(stage - 1, FORWARD, microbatch)} if stage else set()
            after = stage + 1
            todo[back] = {forward} if after == stages else {
                forward, Action(after, INPUT if halves[after] else BACKWARD, microbatch)
            }  # fmt: skip
            if halves[stage]:
                todo[Action(stage, WEIGHT, microbatch)] = {back}
    done: set[Action] = set()
    while todo:
        action = draw.choice([action for action, needs in todo.items() if needs <= done])
        actions[placement[action.stage]].append(action)
        done.add(action)
        del todo[action]
    return Order(tuple(placement), tuple(map(tuple, actions)), microbatches)


@settings(max_examples=examples(12, 200))
@given(st.integers(0, 10_000))
def test_any_valid_program_has_them_too(pool: Pool, seed: int) -> None:
    order = random_order(seed)
    program = lower(assemble(order))
    check(program)
    compare(pool, program, order.stages, order.microbatches, seed, random_cut(order.stages, seed))
