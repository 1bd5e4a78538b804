"""Experts on several ranks: outputs and all gradients of one process, wherever the tokens are.

Each rank has tokens of its own; expected is one process with all of them. Losses are sums with constants that
depend on a token's global number alone, so gradients are compared without any factor. What this cannot
show: NCCL, overlap, and the order of collectives where ranks differ in more than their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.grid import Grid
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.models.moe import MoE, begin_step
from shunter.models.router import Routing
from shunter.models.sharding import expert_holding
from shunter.models.spec import ExpertsSpec
from shunter.parallel import exchange
from shunter.parallel.experts import Dispatcher, reach_experts, sum_load
from shunter.parallel.mesh import Groups, Mesh, Peers, ProcessGroups, make_groups
from shunter.parallel.part import localise
from tests.parallel.pool import Pool

DIM = 8
GROUPS = ProcessGroups()  # of a worker, whose module this is
BASE: dict[str, Any] = {"num_experts": 12, "per_token": 3, "ffn_dim": 6, "shared_ffn_dim": 5, "scale": 1.5}


def layer(case: dict[str, Any]) -> MoE:
    torch.manual_seed(0)
    moe = MoE(DIM, ExpertsSpec(**{**BASE, **case.get("experts", {})})).double()
    torch.nn.init.normal_(moe.router.weight)
    if case.get("crowded"):  # all choose the first experts: the rest are empty
        with torch.no_grad():
            moe.router.weight[:3, 0] += 1e3
    return moe


def tokens(case: dict[str, Any]) -> list[Tensor]:
    """Rows [B, n, D] of each rank."""
    draw = torch.Generator().manual_seed(1)
    made = [torch.randn(2, n, DIM, generator=draw, dtype=torch.float64) for n in case["tokens"]]
    return [x.abs() for x in made] if case.get("crowded") else made


def factors(x: Tensor, number: int) -> Tensor:
    """The loss's coefficients of the tokens of rank `number`."""
    return (torch.arange(x.numel()).view_as(x) * 0.7 + 100 * number).cos()


def run(moe: MoE, x: Tensor, number: int, real: Tensor | None = None) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = moe(x, real)
    (y * factors(x, number)).sum().backward()
    grads = {name: p.grad for name, p in moe.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad} | grads


def pieces(moe: MoE, grid: Grid, place: Mapping[str, int]) -> dict[str, Holding]:
    """What a rank holds of a whole layer's parameters."""
    return {
        name: expert_holding(moe.spec, name.endswith("gate_up"), Holding(Piece.full(p.shape)), grid, place)
        if name.startswith("experts.")
        else Holding(Piece.full(p.shape))
        for name, p in moe.named_parameters()
    }


def on_ranks(moe: MoE, mesh: Mesh, **more: Any) -> None:
    """Keep this rank's part of the experts, and reach the others."""
    localise(moe, pieces(moe, mesh.grid, mesh.place), torch.device("cpu"))
    reach_experts(moe, mesh.peers("ep"), mesh.peers("etp"), **more)


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    grid = Grid(**case["grid"])
    make_groups(grid, GROUPS)
    if rank >= grid.size:
        return None
    mesh = Mesh(grid, rank, GROUPS)
    moe, sequence = layer(case), mesh.peers("cp", "tp")
    places = None if "places" not in case else lambda length: torch.tensor(case["places"])
    on_ranks(moe, mesh, sequence=sequence, places=places, pad=case.get("pad", False))
    if case.get("pad") and isinstance(moe.dispatch, Dispatcher):
        moe.dispatch.plan = None  # nobody is asked
    begin_step(moe, case.get("count", 0), max(len(each) for each in tokens(case)))
    real = None if "real" not in case else case["real"][rank]
    found = run(moe, tokens(case)[rank], rank, real)
    sum_load(moe, mesh.peers("dp", "fsdp", "cp", "tp"))
    assert moe.router.load is not None
    return found, mesh.place, moe.router.load.chosen


def whole(case: dict[str, Any], answers: list[Any]) -> dict[str, Tensor]:
    """The ranks' gradients of parameters, put together: each has been summed once by its ranks."""
    grid, moe = Grid(**case["grid"]), layer(case)
    found = {name: torch.zeros_like(p) for name, p in moe.named_parameters()}
    for grads, place, _ in answers[: grid.size]:
        held = pieces(moe, grid, place)
        for name, total in found.items():
            for box in held[name].piece.boxes():
                total[box.slices(box.whole)] += grads[name][box.slices(box.part)]
    return found


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=name)


CASES: dict[str, dict[str, Any]] = {
    "ep 1": {"grid": {"dp": 2}, "tokens": [3, 5]},
    "ep 2": {"grid": {"dp": 2, "ep": 2}, "tokens": [4, 4]},
    "ep 2, two copies": {"grid": {"dp": 4, "ep": 2}, "tokens": [4, 2, 1, 6]},
    "ep 3": {"grid": {"dp": 3, "ep": 3}, "tokens": [4, 1, 2]},
    "ep 4 over dp and cp": {"grid": {"dp": 2, "cp": 2, "ep": 4}, "tokens": [3, 3, 5, 5]},
    "ep 4 over tp": {"grid": {"tp": 4, "ep": 4}, "tokens": [2, 2, 2, 2]},
    "etp 2": {"grid": {"tp": 2, "etp": 2}, "tokens": [3, 3]},
    "etp 3": {"grid": {"dp": 3, "etp": 3}, "tokens": [3, 0, 5]},
    "ep 2, etp 2": {"grid": {"fsdp": 4, "ep": 2, "etp": 2}, "tokens": [3, 1, 2, 4]},
    "empty ranks": {"grid": {"dp": 4, "ep": 2, "etp": 2}, "tokens": [0, 5, 0, 0]},
    "no tokens at all": {"grid": {"dp": 4, "ep": 4}, "tokens": [0, 0, 0, 0]},
    "empty experts": {"grid": {"dp": 4, "ep": 4}, "tokens": [3, 1, 2, 0], "crowded": True},
    "empty experts, etp": {"grid": {"dp": 4, "ep": 2, "etp": 2}, "tokens": [3, 1, 2, 0], "crowded": True},
    "one expert a rank": {"grid": {"dp": 4, "ep": 4}, "tokens": [3, 1, 2, 4], "experts": {"num_experts": 4}},
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_one_process(name: str, pool: Pool) -> None:
    case = CASES[name]
    answers = pool.run(task, 4, case)
    size = Grid(**case["grid"]).size
    single = layer(case)
    for rank, x in enumerate(tokens(case)):  # one after the other: gradients of parameters add up
        expected = run(single, x, rank)
        compare({part: answers[rank][0][part] for part in ("y", "x")}, expected)
    compare(whole(case, answers), {name: p.grad for name, p in single.named_parameters()})
    if case.get("crowded"):
        assert not answers[0][2][3:].any()
    assert single.router.load is not None
    assert all(torch.equal(load, single.router.load.chosen) for _, _, load in answers[:size])


ZIGZAG = [0, 1, 8, 9, 2, 3, 6, 7, 4, 5]  # two ranks: pieces 0 and 3, pieces 1 and 2, the last one short
SCOPES: dict[str, dict[str, Any]] = {
    "probs": {"experts": {"capacity": 0.8}},
    "position": {"experts": {"capacity": 0.8, "drop": "position"}},
    "position, folded": {"experts": {"capacity": 0.8, "drop": "position"}, "places": ZIGZAG},
    "filled up": {"experts": {"capacity": 0.8}, "pad": True},
    "filled up, folded": {"experts": {"capacity": 1.3, "drop": "position"}, "places": ZIGZAG, "pad": True},
    "losses": {"experts": {"balance_loss": 0.5, "z_loss": 0.1}},
    "losses of micro-batches": {
        "experts": {"balance_loss": 0.5, "balance_scope": "microbatch", "router": "sigmoid"}
    },
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("grid", [{"cp": 2, "ep": 2}, {"dp": 2, "tp": 2, "ep": 2, "etp": 2}], ids=str)
def test_whole_rows_are_heeded_where_a_rank_has_a_part(
    grid: dict[str, int], name: str, padded: bool, pool: Pool
) -> None:
    size, order = Grid(**grid).size, torch.tensor(SCOPES[name].get("places", list(range(10))))
    case = {"grid": grid, "tokens": [5] * size, **SCOPES[name]}
    real = [torch.rand(2, 5, generator=torch.Generator().manual_seed(r)) < 0.8 for r in range(size)]
    if padded:
        case["real"] = real
    case["count"] = int(torch.stack(real).sum()) if padded else 10 * size
    answers = pool.run(task, 4, case)
    single = layer(case)
    begin_step(single, case["count"])
    for first in range(0, size, 2):  # the ranks of one row
        parts = tokens(case)[first : first + 2]
        back = order.argsort()
        x = torch.cat(parts, 1)[:, back].requires_grad_()
        valid = torch.cat(real[first : first + 2], 1)[:, back] if padded else None
        y = single(x, valid)
        coefficients = torch.cat([factors(part, first + i) for i, part in enumerate(parts)], 1)[:, back]
        (y * coefficients).sum().backward()
        for place, tensor in (("y", y.detach()), ("x", x.grad)):
            found = torch.cat([answers[rank][0][place] for rank in (first, first + 1)], 1)
            torch.testing.assert_close(found, tensor[:, order], rtol=1e-9, atol=1e-12, msg=place)
    compare(whole(case, answers), {name: p.grad for name, p in single.named_parameters()})


@pytest.mark.parametrize("pad", [False, True])
def test_local_dropping_looks_at_a_rank_alone(pad: bool, pool: Pool) -> None:
    experts = {"capacity": 0.6, "capacity_scope": "local"}
    case = {"grid": {"cp": 4, "ep": 2, "etp": 2}, "tokens": [4, 4, 4, 4], "experts": experts, "pad": pad}
    answers = pool.run(task, 4, case)
    single = layer(case)
    for rank, x in enumerate(tokens(case)):
        compare({part: answers[rank][0][part] for part in ("y", "x")}, run(single, x, rank))
    compare(whole(case, answers), {name: p.grad for name, p in single.named_parameters()})
    free = layer({})
    assert not torch.allclose(answers[0][0]["y"], free(tokens(case)[0]))


def traffic(rank: int, groups: Groups, case: dict[str, Any]) -> tuple[dict[int, int], int]:
    """Bytes of rows sent to others forward and backward, of weights, and how often the host waited."""
    mesh = Mesh(Grid(**case["grid"]), rank, GROUPS)
    moe, n = layer(case), case["rows"]
    k, size = moe.spec.per_token, moe.spec.num_experts
    on_ranks(moe, mesh)
    sent: dict[int, int] = {1: 0, 2: 0}
    real = dist.all_to_all_single

    def counted(output: Tensor, rows: Tensor, receive: list[int], send: list[int], **more: Any) -> Any:
        others = len(rows) - send[mesh.peers("ep").index]
        sent[rows.ndim] += others * rows[:1].nbytes
        return real(output, rows, receive, send, **more)

    x = torch.randn(n, DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(n, k, dtype=torch.float64, requires_grad=True)
    even = (torch.arange(n * k) % size).view(n, k)
    exchange.dist.all_to_all_single = counted
    try:
        assert moe.dispatch is not None
        y = moe.dispatch(x, Routing(even, weights, True))
        forward = sent[2]
        y.sum().backward()
    finally:
        exchange.dist.all_to_all_single = real
    return {"forward": forward, "both": sent[2], "weights": sent[1]}, k


@pytest.mark.parametrize("ep", [2, 4])
def test_bytes_of_balanced_routing_are_those_of_the_formula(ep: int, pool: Pool) -> None:
    """2 n k h bytes (EP - 1) / EP forward, and as many backward; weights are a scalar a row beside it."""
    case = {"grid": {"dp": 4, "ep": ep}, "rows": 8}
    for sent, k in pool.run(traffic, 4, case):
        rows = 8 * k * (ep - 1) // ep
        assert sent["forward"] == 2 * rows * DIM * 8
        assert sent["both"] == 4 * rows * DIM * 8
        assert sent["weights"] == 2 * rows * 8


def test_alone_it_is_the_plain_one() -> None:
    moe, plain = layer({}), layer({})
    reach_experts(moe, Peers.alone(), Peers.alone(), sequence=Peers.alone())
    assert moe.dispatch is None
    assert moe.router.others is None
    x = tokens({"tokens": [5]})[0]
    compare(run(moe, x, 0), run(plain, x, 0))
