"""The simulator against sums done by hand and against a slow reference; deadlocks are told as cycles."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.schedule.action import FORWARD, Action
from shunter.schedule.assemble import Visit, assemble
from shunter.schedule.builders import single, vee
from shunter.schedule.costs import Costs, Links
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.program import COMPUTE_LANE, Edge, Node, Program
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate
from shunter.schedule.summary import held


def slowly(program: Program, costs: Costs, delay: float) -> list[float]:
    """End of each node, by relaxing every constraint until nothing moves."""
    end = [0.0] * len(program.nodes)
    before = {}
    for ids in program.order.values():
        before.update({b: a for a, b in pairwise(ids)})
    moved = True
    while moved:
        moved = False
        for node in program.nodes:
            begin = end[before[node.id]] if node.id in before else 0.0
            for source, target, payload in program.edges:
                if target == node.id:
                    away = payload and program.nodes[source].rank != node.rank
                    begin = max(begin, end[source] + (delay if away else 0.0))
            if begin + costs.of(node.op, node.stage) > end[node.id] + 1e-12:
                end[node.id] = begin + costs.of(node.op, node.stage)
                moved = True
    return end


@given(
    st.sampled_from([single.one_f_one_b, single.gpipe, vee.zero_bubble_v]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.floats(0, 2),
    st.integers(0, 1000),
)
def test_equals_a_slow_reference(build, ranks, microbatches, delay, seed) -> None:  # type: ignore[no-untyped-def]
    order = build(ranks, microbatches)
    draw = random.Random(seed)
    costs = Costs({(op, s): draw.uniform(0.1, 2) for op in "FIW" for s in range(order.stages)})
    program = assemble(order)
    found = simulate(program, costs, Links(latency=delay))
    assert found.end == pytest.approx(slowly(program, costs, delay))
    path = found.critical_path()
    assert found.end[path[-1].id] == found.elapsed
    assert found.begin[path[0].id] == 0


def two(microbatches: int) -> Order:
    return single.forward_only(2, microbatches)


def test_a_link_that_is_occupied_makes_messages_queue() -> None:
    program, costs = assemble(two(3)), Costs({("F", 0): 1.0, ("F", 1): 1.0})
    assert simulate(program, costs, Links(latency=2.0)).elapsed == 3 + 2 + 1
    # Messages leave at 1, 2, 3 and take the link for 2 each: they arrive at 3, 5, 7.
    assert simulate(program, costs, Links(occupied=2.0)).elapsed == 8
    assert simulate(program, costs, Links(between={(0, 1): (0.5, 2.0)})).elapsed == 8.5
    queued = simulate(program, costs, Links(latency=0.5, occupied=2.0))
    assert [str(node.action) for node in queued.critical_path()] == ["0F0", "0F1", "0F2", "1F2"]
    # The other direction's link is another one.
    assert simulate(program, costs, Links(between={(1, 0): (9.0, 9.0)})).elapsed == 4


def test_blocking_messages_keep_the_sender() -> None:
    program, costs = assemble(two(3)), Costs({("F", 0): 1.0, ("F", 1): 1.0})
    assert simulate(program, costs, Links(occupied=1.0, blocking=True)).elapsed == 7


def test_what_a_rendezvous_waits_for() -> None:
    nodes = [
        Node(0, 0, COMPUTE_LANE, "F", 0, 0),
        Node(1, 0, COMPUTE_LANE, "C", 0, 0),
        Node(2, 1, COMPUTE_LANE, "C", 1, 0),
        Node(3, 1, COMPUTE_LANE, "F", 1, 0),
    ]
    order = {(0, COMPUTE_LANE): [0, 1], (1, COMPUTE_LANE): [2, 3]}
    program = Program(nodes, order, [], [(1, 2)])
    costs = Costs({("F", 0): 3.0, ("F", 1): 1.0, ("C", 0): 0.5, ("C", 1): 0.5})
    found = simulate(program, costs)
    assert found.begin == [0.0, 3.0, 3.0, 3.5]
    assert [node.id for node in found.critical_path()] == [0, 2, 3]


def test_memory_is_counted_over_lanes_in_time() -> None:
    nodes = [
        Node(0, 0, COMPUTE_LANE, "F", 0, 0, memory=1.0),
        Node(1, 0, COMPUTE_LANE, "F", 0, 1, memory=1.0),
        Node(2, 0, "copy", "OFFLOAD", 0, 0, memory=-1.0),
    ]
    order = {(0, COMPUTE_LANE): [0, 1], (0, "copy"): [2]}
    costs = {("F", 0): 1.0}
    program = Program(nodes, order, [Edge(0, 2)])
    # The second forward begins at 1; what the copy frees by then does not count any more.
    assert simulate(program, Costs({**costs, ("OFFLOAD", 0): 0.0})).peak_activations == [1.0]
    assert simulate(program, Costs({**costs, ("OFFLOAD", 0): 0.5})).peak_activations == [2.0]


def test_a_deadlock_is_shown_as_its_cycle() -> None:
    order = single.one_f_one_b(2, 2)
    first = tuple(action for action in order.actions[0] if str(action) != "0F1")
    swapped = Order(
        order.placement, ((first[0], first[1], first[2], Action(0, FORWARD, 1)), order.actions[1]), 2
    )
    with pytest.raises(ShunterError) as caught:
        simulate(assemble(swapped), Costs({}))
    message = str(caught.value)
    assert "deadlock: " in message
    chain = message.split("deadlock: ")[1].split(". ")[0].split(" -> ")
    assert chain[0] == chain[-1]
    assert {"rank 0 0B1", "rank 0 0F1"} <= set(chain)


def test_swapped_receives_deadlock() -> None:
    names = [("SEND", 0, 0), ("SEND", 0, 1), ("RECV", 1, 1), ("RECV", 1, 0)]
    nodes = [Node(i, rank, "link", op, rank, mb) for i, (op, rank, mb) in enumerate(names)]
    order = {(0, "link"): [0, 1], (1, "link"): [2, 3]}
    with pytest.raises(ShunterError, match="deadlock"):
        simulate(Program(nodes, order, [], [(0, 3), (1, 2)]), Costs({}))


def test_chunks_of_a_graph_hand_on_states_and_must_go_back_in_reverse() -> None:
    def program(fifo: bool) -> Program:
        order = single.gpipe(3, 4, fifo=fifo)
        made = assemble(order)
        at = {(node.op, node.stage, node.microbatch): node.id for node in made.nodes}
        chunks = range(1, 4)
        return made.with_edges(
            edge
            for stage in range(3)
            for chunk in chunks
            for edge in (
                Edge(at["F", stage, chunk - 1], at["F", stage, chunk], "state"),
                Edge(at["B", stage, chunk], at["B", stage, chunk - 1], "state"),
            )
        )

    costs = Costs.even((0, 1, 2))
    assert simulate(program(fifo=False), costs).elapsed == 6 + 12
    with pytest.raises(ShunterError, match="deadlock"):
        simulate(program(fifo=True), costs)


def test_routes_that_skip_stages_on_replicas() -> None:
    """Stage 0 has replicas on ranks 0 and 1; each micro-batch skips one of stages 1 to 3 (ranks 2 to 4)."""
    routes = [
        [Visit(0, 0), Visit(1, 2), Visit(2, 3)],
        [Visit(0, 1), Visit(2, 3), Visit(3, 4)],
        [Visit(0, 0), Visit(3, 4), Visit(1, 2)],
    ]
    steps: dict[int, list[tuple[int, str, int, int]]] = {rank: [] for rank in range(5)}
    for microbatch, route in enumerate(routes):
        for at, (stage, rank, _) in enumerate(route):
            steps[rank].append((at, "F", stage, microbatch))
            steps[rank].append((2 * len(route) - at, "B", stage, microbatch))
    actions = tuple(
        tuple(Action(stage, op, mb) for _, op, stage, mb in sorted(steps[rank])) for rank in range(5)
    )
    order = Order((0, 2, 3, 4), actions, 3)
    found = simulate(assemble(order, routes=routes), Costs({(op, s): 1.0 for op in "FB" for s in range(4)}))
    assert found.elapsed >= 6
    short = tuple(tuple(a for a in rank if str(a) != "3F2") for rank in actions)
    with pytest.raises(ShunterError, match="rank 4 never does 3F2"):
        assemble(Order(order.placement, short, 3), routes=routes)
    with pytest.raises(ShunterError, match="not on the route"):
        assemble(order, routes=[routes[0], routes[1], routes[2][:2]])


def test_an_action_done_twice_and_a_backward_done_in_two_ways_are_refused() -> None:
    order = single.one_f_one_b(1, 2)
    with pytest.raises(ShunterError, match="twice"):
        assemble(Order(order.placement, ((*order.actions[0], Action(0, "F", 1)),), 2))
    with pytest.raises(ShunterError, match="whole backward"):
        assemble(Order(order.placement, ((*order.actions[0], Action(0, "I", 1)),), 2))


def test_the_timeline_has_every_node_that_takes_time() -> None:
    order = single.one_f_one_b(2, 3)
    found = simulate(assemble(order), Costs.even(order.placement))
    timeline = found.timeline()
    assert len(timeline) == 12
    assert timeline.elapsed == found.elapsed
    assert not timeline.overlaps()


def test_what_is_held_follows_from_the_spans() -> None:
    """Of a measured timeline nothing else is known; of a simulated one it is what the program says."""
    for build in (single.one_f_one_b, single.gpipe, vee.zero_bubble_v, single.forward_only):
        order = build(3, 7)
        found = simulate(assemble(order), Costs.even(order.placement, 1, 0.75, 1.25))
        told = held(found.timeline())
        for rank, curve in found.held().items():
            assert told.get(rank, []) == curve
    again = simulate(assemble(recomputed(single.gpipe(2, 4))), Costs.even((0, 1)))
    assert max(amount for _, amount in held(again.timeline())[0]) == 1


def test_messages_have_sizes() -> None:
    """A link is occupied for as long as the bytes of the payload take; gradients may be smaller."""
    order = single.gpipe(2, 2)
    costs = Costs({(op, stage): 1.0 for op in "FB" for stage in (0, 1)})
    links = Links(occupied=0.5, sizes={"activation": 4.0, "gradient": 1.0})
    # 0F1 ends at 2; its 4 bytes leave after those of 0F0, at 5, and 1F1 ends at 6. 1B1, 1B0 end at 7 and 8;
    # the gradients arrive at 7.5 and 8.5.
    for program in (assemble(order), lower(assemble(order))):
        assert simulate(program, costs, links).elapsed == 9.5
    assert links.of(0, 1, "skip") == (0.0, 0.0)
