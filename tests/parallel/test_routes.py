"""Programs in which micro-batches go ways of their own, run on real processes: gradients of one process.

Stages are skipped and swapped, stand on several ranks, and are come back to for their head; chunks of a graph
hand a state on. What these tests cannot show: that a model learns as well by such ways.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree
from shunter.schedule.action import BACKWARD, FORWARD, HEAD_PART, INPUT, REDUCE, WEIGHT, Action
from shunter.schedule.assemble import Route, Visit, assemble
from shunter.schedule.builders.single import gpipe
from shunter.schedule.check import check
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.program import Edge, Node, Program
from shunter.schedule.recompute import recomputed
from shunter.schedule.text import read_program, write_program
from tests.draws import examples
from tests.parallel.layers import DIM, Layer, batches, layers, loss_of
from tests.parallel.pool import Pool

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def head_of(layer: Layer, x: Tensor) -> Tensor:
    """The loss in a stage's head, which shares the weights of its stage as a tied embedding does."""
    return loss_of(torch.tanh(x @ layer.up.weight.T))


def walk(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    """Gradients by stage of two steps' second, of the layers that this rank has."""
    program, routes, seed = case["program"], case["routes"], case["seed"]
    whole, data = layers(case["stages"], seed), batches(len(routes), seed)
    held = sorted({(n.stage, n.part) for n in program.nodes if n.rank == rank and n.op == FORWARD})

    def stage_of(number: int, part: str) -> Stage:
        def compute(inputs: Tree, microbatch: int) -> Tree:
            x = inputs.get("x", data[microbatch])
            if part:
                return {LOSS: head_of(whole[number], x)}
            y = whole[number](x)
            last = routes[microbatch][-1]
            return {LOSS: loss_of(y)} if (last.stage, last.part) == (number, "") else {"x": y}

        return Stage(compute, whole[number])

    def reduce(node: Node, _: Tree) -> None:
        """Over the two replicas of a stage, which exchange no other messages."""
        if node.stage not in case["reduced"]:
            return
        (peer,) = set(case["reduced"][node.stage]) - {rank}
        for parameter in whole[node.stage].parameters():
            assert parameter.grad is not None
            other = torch.empty_like(parameter.grad)
            for mine in (rank < peer, rank > peer):
                if mine:
                    dist.send(parameter.grad, peer, group=groups.up if peer > rank else groups.down)
                else:
                    dist.recv(other, peer, group=groups.up if peer < rank else groups.down)
            parameter.grad += other

    stages: dict[int | tuple[int, str], Stage] = {key: stage_of(*key) for key in held}
    executor = Executor(program, rank, stages, groups, CPU, handlers={REDUCE: reduce})
    for _ in range(2):
        for layer in whole:
            layer.zero_grad()
        losses = executor.run()
    assert all(stage.in_flight == 0 for stage in stages.values())
    grads = {
        (number, name): parameter.grad
        for number in {stage for stage, _ in held}
        for name, parameter in whole[number].named_parameters()
        if parameter.grad is not None
    }
    return grads, {microbatch: loss.item() for microbatch, loss in losses.items()}


def compare(
    pool: Pool, program: Program, routes: list[Route], stages: int, seed: int, reduced: dict[int, Any]
) -> None:
    """reduced: stage -> the ranks that have its whole gradient; others' parts are added up here."""
    case = {"program": program, "routes": routes, "stages": stages, "seed": seed, "reduced": reduced}
    whole, expected = layers(stages, seed), {}
    losses = []
    for route, x in zip(routes, batches(len(routes), seed), strict=True):
        for visit in route:
            x = head_of(whole[visit.stage], x) if visit.part else whole[visit.stage](x)
        loss = x if route[-1].part else loss_of(x)
        loss.backward()
        losses.append(loss.item())
    for number, layer in enumerate(whole):
        for name, parameter in layer.named_parameters():
            if parameter.grad is not None:
                expected[number, name] = parameter.grad
    found: dict[Any, Tensor] = {}
    told: dict[int, float] = {}
    for grads, numbers in pool.run(walk, program.ranks, case):
        told |= numbers
        for key, grad in grads.items():
            if key in found and key[0] in reduced:
                torch.testing.assert_close(found[key], grad, **CLOSE)
            else:
                found[key] = found[key] + grad if key in found else grad
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, **CLOSE, msg=str(key))
    assert [told[m] for m in range(len(routes))] == pytest.approx(losses, rel=1e-12)


def routes_of(text: str) -> list[Route]:
    """A line for each micro-batch: `0@0 2@2 0.head@0`."""
    return [
        [
            Visit(int(stop.split("@")[0].split(".")[0]), int(stop.split("@")[1]), HEAD_PART * ("." in stop))
            for stop in line.split()
        ]
        for line in text.strip().splitlines()
    ]


SWAPPED = """program,1
microbatches,3
placement,0,1,2
route,1,0@0,2@2
route,2,0@0,2@2,1@1
lane,0,compute,0F0,0F1,0F2,0B0,0B1,0B2
lane,1,compute,1F0,1F2,1B2,1B0
lane,2,compute,2F0,2F1,2F2,2B0,2B1,2B2
"""


def test_stages_are_skipped_and_swapped(pool: Pool) -> None:
    routes = routes_of("0@0 1@1 2@2\n0@0 2@2\n0@0 2@2 1@1")
    # Micro-batch 1 ends on stage 2 as micro-batch 0 does, and micro-batch 2 passes it on.
    compare(pool, lower(read_program(SWAPPED)), routes, 3, 4, {})


REPLICAS = """program,1
microbatches,4
placement,0,2,3
route,1,0@1,2@3,1@2
route,3,0@1,1@2
lane,0,compute,0F0,0F2,0B0,0B2
lane,1,compute,0F1,0F3,0B1,0B3
lane,2,compute,1F0,1F1,1B1,1F2,1B0,1F3,1B3,1B2
lane,3,compute,2F1,2F0,2B0,2B1,2F2,2B2
"""


def test_a_stage_stands_on_two_ranks_and_its_gradients_are_reduced(pool: Pool) -> None:
    routes = routes_of("0@0 1@2 2@3\n0@1 2@3 1@2\n0@0 1@2 2@3\n0@1 1@2")
    program = lower(read_program(REPLICAS), reduce=True)
    check(program, in_flight=2)
    compare(pool, program, routes, 3, 5, {0: (0, 1)})


HEAD = """program,1
microbatches,3
placement,0,1
route,0,0@0,1@1,0.head@0
route,1,0@0,1@1,0.head@0
route,2,0@0,0.head@0
lane,0,compute,0F0,0F1,0.headF0,0.headB0,0F2,0.headF2,0B0,0.headF1,0.headB1,0.headB2,0B2,0B1
lane,1,compute,1F0,1F1,1B0,1B1
"""


@pytest.mark.parametrize("again", [False, True])
def test_a_way_ends_in_the_head_of_the_stage_where_it_began(pool: Pool, again: bool) -> None:
    """The head has its stage's weights, whose gradients come from both."""
    routes = routes_of("0@0 1@1 0.head@0\n0@0 1@1 0.head@0\n0@0 0.head@0")
    program = read_program(HEAD)
    order = Order((0, 1), tuple(tuple(program.actions(rank)) for rank in range(2)), 3)
    if again:
        program = assemble(recomputed(order), routes=routes)
    lowered = lower(program)
    check(lowered, in_flight=2)
    compare(pool, lowered, routes, 2, 6, {})
    again_read = read_program(write_program(lowered, order, routes)) if not again else lowered
    assert {str(node) for node in again_read.nodes} == {str(node) for node in lowered.nodes}


def test_a_middle_stage_hears_twice_of_one_rank(pool: Pool) -> None:
    """Rank 1 gets the activations of its stage and of its head from rank 0, in one lane."""
    text = """program,1
microbatches,2
placement,0,1,0
route,0,0@0,1@1,2@0,1.head@1
route,1,0@0,1@1,2@0,1.head@1
lane,0,compute,0F0,0F1,2F0,2F1,2B0,0B0,2B1,0B1
lane,1,compute,1F0,1F1,1.headF0,1.headB0,1.headF1,1.headB1,1B0,1B1
"""
    lowered = lower(read_program(text))
    assert [str(node.action) for node in lowered.lane(1, "from 0")][:3] == [
        "1RECV_F0", "1RECV_F1", "1.headRECV_F0",
    ]  # fmt: skip
    compare(pool, lowered, routes_of("0@0 1@1 2@0 1.head@1\n0@0 1@1 2@0 1.head@1"), 3, 7, {})


def random_routes(seed: int) -> tuple[Order, list[Route]]:
    """Stages on one or two ranks, each micro-batch by any of them in any order, each rank's actions in any
    order that can be run; some backwards in halves, some ways with a head at their end."""
    draw = random.Random(seed)
    ranks, stages, microbatches = draw.randint(1, 4), draw.randint(1, 5), draw.randint(1, 5)
    holders = [draw.sample(range(ranks), min(ranks, draw.choice([1, 1, 2]))) for _ in range(stages)]
    routes: list[Route] = []
    todo: dict[tuple[int, Action], set[tuple[int, Action]]] = {}
    for microbatch in range(microbatches):
        chosen = draw.sample(range(stages), draw.randint(1, stages))
        route = [Visit(stage, draw.choice(holders[stage])) for stage in chosen]
        if draw.random() < 0.5:
            route.append(draw.choice(route)._replace(part=HEAD_PART))
        routes.append(route)
        before: set[tuple[int, Action]] = set()
        for stage, rank, part in route:
            here = rank, Action(stage, FORWARD, microbatch, part=part)
            todo[here] = before
            before = {here}
        for stage, rank, part in reversed(route):
            op = draw.choice([BACKWARD, INPUT])
            here = rank, Action(stage, op, microbatch, part=part)
            todo[here] = before | {(rank, Action(stage, FORWARD, microbatch, part=part))}
            if op == INPUT:
                todo[rank, Action(stage, WEIGHT, microbatch, part=part)] = {here}
            before = {here}
    actions: list[list[Action]] = [[] for _ in range(ranks)]
    done: set[tuple[int, Action]] = set()
    while todo:
        rank, action = draw.choice([key for key, needs in todo.items() if needs <= done])
        actions[rank].append(action)
        done.add((rank, action))
        del todo[rank, action]
    return Order(tuple(held[0] for held in holders), tuple(map(tuple, actions)), microbatches), routes


@settings(max_examples=examples(10, 100))
@given(st.integers(0, 10_000))
def test_any_ways_have_the_gradients_of_one_process(pool: Pool, seed: int) -> None:
    order, routes = random_routes(seed)
    lowered = lower(assemble(order, routes=routes))
    check(lowered)
    again = read_program(write_program(lowered, order, routes))
    assert write_program(again, order, routes) == write_program(lowered, order, routes)
    compare(pool, lowered, routes, order.stages, seed, {})


class Cell(nn.Module):
    """A layer over chunks of a graph: what it kept of the chunk before comes in beside the chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(DIM, DIM, dtype=torch.float64)
        self.kept = nn.Linear(DIM, DIM, dtype=torch.float64)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.own(x) + (0 if state is None else self.kept(state)))
        return y, y.mean(dim=0)


def cells() -> list[Cell]:
    torch.manual_seed(8)
    return [Cell() for _ in range(3)]


def chunks(program: Program) -> Program:
    """States go on from chunk to chunk, and their gradients back."""
    at = {(node.op, node.stage, node.microbatch): node.id for node in program.nodes}
    return program.with_edges(
        edge
        for stage in range(3)
        for chunk in range(1, 4)
        for edge in (
            Edge(at["F", stage, chunk - 1], at["F", stage, chunk], "state"),
            Edge(at["B", stage, chunk], at["B", stage, chunk - 1], "state"),
        )
    )


def graph(rank: int, groups: Groups, program: Program) -> list[Tensor | None]:
    cell, data = cells()[rank], batches(4, 8)

    def compute(inputs: Tree, microbatch: int) -> Tree:
        y, state = cell(inputs["x"] if rank else data[microbatch], inputs.get("state"))
        made = {LOSS: loss_of(y)} if rank == 2 else {"x": y}
        return made | ({"state": state} if microbatch < 3 else {})  # the last chunk's is nobody's

    executor = Executor(program, rank, {rank: Stage(compute, cell)}, groups, CPU)
    for _ in range(2):
        cell.zero_grad()
        executor.run()
    return [parameter.grad for parameter in cell.parameters()]


def test_chunks_of_a_graph_hand_on_states(pool: Pool) -> None:
    """Card gnnpipe: a layer needs what it kept of the chunk before, and its backward the reverse."""
    program = lower(chunks(assemble(gpipe(3, 4))))
    check(program)
    assert not any(node.payload for node in program.nodes), "states stay on their rank"
    found = [gradient for part in pool.run(graph, 3, program) for gradient in part]
    whole, states, total = cells(), [None] * 3, torch.zeros((), dtype=torch.float64)
    for x in batches(4, 8):
        for number, cell in enumerate(whole):
            x, states[number] = cell(x, states[number])
        total = total + loss_of(x)
    total.backward()
    for ours, parameter in zip(found, (p for cell in whole for p in cell.parameters()), strict=True):
        torch.testing.assert_close(ours, parameter.grad, **CLOSE)
