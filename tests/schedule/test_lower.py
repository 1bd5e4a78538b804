"""Lowering against torch's; hand-made mistakes in programs are found and named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import _Action, _add_send_recv

from shunter.config.errors import ShunterError
from shunter.schedule.action import REDUCE, RESHARD, UNSHARD, texts
from shunter.schedule.assemble import Visit, assemble
from shunter.schedule.catalogue import SCHEDULES, schedule
from shunter.schedule.check import check
from shunter.schedule.costs import Costs, Links
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.program import Edge, Program
from shunter.schedule.simulate import simulate
from shunter.schedule.text import read_program, write_order, write_program

NAMES = sorted(SCHEDULES)


def build(name: str, ranks: int, microbatches: int) -> Order:
    return schedule(name).build(ranks, microbatches)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (3, 7), (4, 8), (6, 12)])
def test_messages_are_torch_s(name: str, ranks: int, microbatches: int) -> None:
    """Each rank sends and receives what it does with torch's lowering, to each peer in the same order."""
    order = build(name, ranks, microbatches)
    program = lower(assemble(order))
    theirs = _add_send_recv(
        {
            rank: [_Action.from_str(text) for text in texts(actions)]
            for rank, actions in enumerate(order.actions)
        },
        stage_to_rank=lambda stage: order.placement[stage],
        num_stages=order.stages,
    )
    for rank, actions in theirs.items():
        sent: dict[tuple[str, int], list[str]] = {}
        for action in actions:
            kind = action.computation_type.name
            if "SEND" in kind or "RECV" in kind:
                ahead = 1 if kind in ("SEND_F", "RECV_B") else -1
                peer = order.placement[action.stage_index + ahead]
                lane = f"{'to' if 'SEND' in kind else 'from'} {peer}"
                sent.setdefault((lane, kind), []).append(str(action))
        ours: dict[tuple[str, int], list[str]] = {}
        for (owner, lane), ids in program.order.items():
            if owner == rank and lane != "compute":
                for id in ids:
                    node = program.nodes[id]
                    ours.setdefault((lane, node.op), []).append(str(node.action))
        assert ours == sent


@given(st.sampled_from(NAMES), st.integers(1, 6), st.integers(0, 7), st.booleans(), st.booleans())
def test_lowered_programs_are_sound_and_take_as_long(
    name: str, ranks: int, more: int, shard: bool, reduce: bool
) -> None:
    order = build(name, ranks, 2 * ranks + more)
    plain = assemble(order)
    program = lower(plain, shard=shard, reduce=reduce)
    check(program)
    costs = Costs.even(order.placement, 1, 0.75, 1.25)
    for links in (Links(), Links(latency=0.25)):
        assert simulate(program, costs, links).elapsed == pytest.approx(simulate(plain, costs, links).elapsed)
    operations = [node.op for node in program.nodes]
    trains = name != "forward-only"
    assert operations.count(UNSHARD) == operations.count(RESHARD) == (order.stages if shard else 0)
    assert operations.count(REDUCE) == (order.stages if reduce and trains else 0)


@given(st.sampled_from(NAMES), st.integers(1, 5), st.integers(0, 6))
def test_text_comes_back_as_it_was(name: str, ranks: int, more: int) -> None:
    order = build(name, ranks, 2 * ranks + more)
    for program in (assemble(order), lower(assemble(order), shard=True)):
        text = write_program(program, order)
        again = read_program(text)
        assert write_program(again, order) == text
        assert again.nodes == program.nodes or {str(n) for n in again.nodes} == {
            str(n) for n in program.nodes
        }
        assert simulate(again, Costs.even(order.placement)).elapsed == pytest.approx(
            simulate(program, Costs.even(order.placement)).elapsed
        )
    torch_form = read_program(write_order(order))
    assert torch_form.nodes == assemble(order).nodes
    assert set(torch_form.edges) == set(assemble(order).edges)


def test_routes_may_skip_and_swap_stages() -> None:
    """Card skippipe: micro-batch 1 skips stage 1, micro-batch 2 takes stages 1 and 2 the other way round."""
    text = """program,1
microbatches,3
placement,0,1,2
route,1,0@0,2@2
route,2,0@0,2@2,1@1
lane,0,compute,0F0,0F1,0F2,0B0,0B1,0B2
lane,1,compute,1F0,1F2,1B2,1B0
lane,2,compute,2F0,2F1,2F2,2B0,2B1,2B2
"""
    program = read_program(text)
    check(lower(program), in_flight=2)
    pairs = {(str(program.nodes[e.source]), str(program.nodes[e.target])) for e in program.edges if e.payload}
    assert ("rank 0 0F1", "rank 2 2F1") in pairs
    assert ("rank 2 2F2", "rank 1 1F2") in pairs
    assert ("rank 1 1B2", "rank 2 2B2") in pairs
    order = Order((0, 1, 2), tuple(tuple(program.actions(rank)) for rank in range(3)), 3)
    routes = [[Visit(0, 0), Visit(1, 1), Visit(2, 2)], [Visit(0, 0), Visit(2, 2)],
              [Visit(0, 0), Visit(2, 2), Visit(1, 1)]]  # fmt: skip
    assert set(assemble(order, routes=routes).edges) == set(program.edges)
    with pytest.raises(ShunterError, match="rank 1 never does 1F1"):
        assemble(order)


def test_skips_have_messages_of_their_own() -> None:
    """A tensor from stage 0 straight to stage 2, beside what stage 1 hands on."""
    order = build("gpipe", 3, 2)
    program = assemble(order)
    of = {str(node): node.id for node in program.nodes}
    program = program.with_edges(Edge(of[f"rank 0 0F{m}"], of[f"rank 2 2F{m}"], "skip") for m in range(2))
    lowered = lower(program)
    check(lowered)
    assert [str(node.action) + node.payload for node in lowered.lane(2, "from 0")] == [
        "2RECV0skip",
        "2RECV1skip",
    ]
    again = lowered.order[0, "to 2"]
    assert [lowered.nodes[id].payload for id in again] == ["skip", "skip"]


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


MISTAKES = [
    ("lane,1,from 0,1RECV_F0,1RECV_F1", "lane,1,from 0,1RECV_F0", "rank 1 never does 1RECV_F1"),
    ("lane,0,to 1,0SEND_F0,0SEND_F1", "lane,0,to 1,0SEND_F1,0SEND_F0", "message 1 from rank 0 is 0SEND_F1"),
    ("1RECV_F0,1RECV_F1", "1RECV_F0,1RECV_F1,1RECV_F7", "1RECV_F7 .from 0. serves nothing"),
    ("1RECV_F0,1RECV_F1", "1RECV_F0,1RECV_F0,1RECV_F1", "does 1RECV_F0 .from 0. twice"),
    ("compute,1F0,1B0,1F1,1B1", "compute,1F0,1F1,1B1", "rank 1 never does 1I0"),
    ("compute,1F0,1B0,1F1,1B1", "compute,1B0,1F0,1F1,1B1", "rank 1 1B0 comes without its forward"),
    ("compute,0F0,0F1,0B0", "compute,0F0,0B0,0F1", "deadlock"),
    ("compute,0F0,0F1,0B0", "compute,0F0,0F1,0F0,0B0", "rank 0 does 0F0 twice"),
    ("placement,0,1", "placement,0,zero", "'zero' is not a whole number"),
    ("lane,0,compute", "lain,0,compute", "'lain' begins no line"),
    ("1F1,1B1", "1F1,one", "'one' is no action"),
    ("1F1,1B1", "1F1,1X1", "edited.csv:7: 1X1: 'X' is no operation of the lane 'compute'"),
    ("1F1,1B1", "1F1,1SHARE1", "edited.csv:7: 1SHARE1: 'SHARE' is no operation of the lane 'compute'"),
    ("1F1,1B1", "1F,1B1", "edited.csv:7: 1F names no micro-batch"),
    ("lane,0,to 1,0SEND_F0", "lane,0,to 1,0F0", "0F0: 'F' is no operation of the lane 'to 1'"),
    ("lane,0,to 1", "lane,0,two 1", "'two 1' is no lane"),
    ("lane,0,to 1", "lane,0", "edited.csv:6: '0SEND_F0' is no lane"),
    ("placement,0,1", "placement,0,1\nroute", "edited.csv:4: a route has no stops"),
    ("placement,0,1", "placement,0,1\nroute,0", "edited.csv:4: a route has no stops"),
    ("placement,0,1", "placement,0,1\nroute,0,0@0,1", "edited.csv:4: '1' is no stop of a route"),
    ("placement,0,1", "placement,0,1\nroute,2,0@0", "micro-batch 2 has a route, and there are 2"),
    ("placement,0,1", "placement,0,1\nroute,0,0@0\nroute,0,0@0", "edited.csv:5: .*'route,0' stands there"),
    ("placement,0,1", "placement,0,1\nplacement,1,0", "edited.csv:4: .*'placement' stands there a second"),
    ("placement,0,1", "placement,0,99999999", "no line `lane,99999999,compute`"),
    ("lane,1,compute", "lane,99999999,compute", "no line `lane,1,compute`"),
    ("lane,1,compute", "lane,0,compute", "edited.csv:7: the line 'lane,0,compute' stands there a second"),
    ("microbatches,2", "microbatches,99999999", "microbatches are 99999999"),
    ("microbatches,2", "microbatches,2,3", "microbatches are 2, 3"),
    ("microbatches,2", "microbatches,0", "microbatches are 0"),
    ("program,1", "program,9", "format .9., not 1"),
    ("microbatches,2\n", "", "no line 'microbatches'"),
]


@pytest.mark.parametrize(("old", "new", "says"), MISTAKES)
def test_mistakes_are_named(old: str, new: str, says: str) -> None:
    order = build("1f1b", 2, 2)
    text = write_program(lower(assemble(order)), order)
    check(read_program(text))
    # 0F0,0B0,0F1 alone is sound on rank 0; with rank 1 asking for both forwards first it is a circle.
    if says == "deadlock":
        text = edited(text, "1F0,1B0,1F1,1B1", "1F0,1F1,1B0,1B1")
    with pytest.raises(ShunterError, match=says):
        check(read_program(edited(text, old, new), "edited.csv"))


WAYS = [
    ("0@0,1@1,1@1", "micro-batch 0 visits stage 1 twice on rank 1.*in the stage's head: 1.head@1"),
    ("0@0,1@1,1@0", "micro-batch 0 visits stage 1 on rank 1 and again on rank 0"),
    ("0@0,1@1,0.head@1", "micro-batch 0 visits stage 0 on rank 0, its head on 1"),
    ("0@0,0.head@0,1@1", "micro-batch 0 visits 0.head@0 and then 1@1"),
    ("0@0,1@1,0.tail@0", "a stage has no part 'tail'"),
    ("0@0,1@1,0.head@0", "rank 0 never does 0.headF0, which micro-batch 0 needs"),
    ("0@0,1@7", "no line `lane,7,compute`"),
]


@pytest.mark.parametrize(("way", "says"), WAYS)
def test_a_way_visits_a_stage_once(way: str, says: str) -> None:
    order = build("1f1b", 2, 2)
    text = edited(write_program(assemble(order), order), "placement,0,1", f"placement,0,1\nroute,0,{way}")
    with pytest.raises(ShunterError, match=says):
        check(read_program(text))


def test_numbers_of_torch_s_form_are_bounded() -> None:
    for text in ("0F0,0B99999999\n", "0F0,99999999F0\n"):
        with pytest.raises(ShunterError, match="has a number of 1,000,000 or more"):
            read_program(text, "torch.csv")


def test_a_reshard_between_the_halves_of_a_backward_is_refused() -> None:
    order = build("zb1p", 2, 2)
    text = write_program(lower(assemble(order), shard=True), order)
    assert "1W1,1RESHARD" in text
    with pytest.raises(ShunterError, match="1RESHARD comes before 1 gradients of the stage's weights"):
        check(read_program(text.replace("1W1,1RESHARD", "1RESHARD,1W1")))
    with pytest.raises(ShunterError, match="while the weights of stage 1 are sharded"):
        check(read_program(text.replace("1UNSHARD,", "")))


def test_memory_caps_and_bounded_receives() -> None:
    order = build("gpipe", 2, 4)
    program = lower(assemble(order))
    check(program, cap=4)
    with pytest.raises(ShunterError, match="rank 0 0F2 makes rank 0 hold 3 micro-batches"):
        check(program, cap=2)
    # Coming back up the V, rank 1 must take four gradients before the first of them has been used.
    vee = lower(assemble(build("zbv", 4, 8)))
    check(vee, in_flight=4)
    with pytest.raises(ShunterError, match="deadlock"):
        check(vee, in_flight=3)


def test_collectives_come_in_one_order() -> None:
    order = build("1f1b", 2, 1)
    program = assemble(order)
    nodes = list(program.nodes)
    lanes = {lane: list(ids) for lane, ids in program.order.items()}
    for rank in range(2):
        lanes[rank, "all"] = []
        for number in range(2):
            nodes.append(
                nodes[0]._replace(
                    id=len(nodes), rank=rank, lane="all", op="MEET", microbatch=number, memory=0.0
                )
            )
            lanes[rank, "all"].append(nodes[-1].id)
    first, second = lanes[0, "all"], lanes[1, "all"]
    check(Program(nodes, lanes, program.edges, [(first[0], second[0]), (first[1], second[1])]))
    with pytest.raises(ShunterError, match="parts of two collectives"):
        check(Program(nodes, lanes, program.edges, [(first[0], second[1]), (first[1], second[0])]))
