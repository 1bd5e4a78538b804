"""Any module, laid out over ranks without a declaration, computes what one process computes.

Modules are drawn: products under known and unknown names, biases, attention that finds its heads by width or
by a number, fused projections, grouped keys, torch's own attention, convolutions, recurrent layers, raw
matrices, subclasses, tables of odd sizes, tied weights. Loss, every gradient and its norm within 1e-9 of one
process, in float64, on 2 and 4 ranks. Which products came in pairs is checked where it is known.

What this cannot show: Hugging Face's own modules (test_published.py has them), dropout (tests/train/task),
modules whose heads are found in a way that no number of theirs tells: those are computed product by product,
and the trial is there to see it; NCCL.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.parallel.counted import counted
from shunter.parallel.generic.laid import lay_out
from shunter.parallel.gradients import add_up_gradients, squared_norm
from shunter.parallel.mesh import Groups, Mesh
from tests.parallel import pool as pools
from tests.parallel.generic.models import WIDTH, Stack, build, loss

GRIDS = [Grid(tp=2), Grid(tp=4), Grid(tp=2, dp=2), Grid(fsdp=2), Grid(fsdp=2, dp=2)]
NAMES = (("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2"), ("wi", "wo"), ("alpha", "beta"), ("zz", "aa"))


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(
        st.sampled_from(["mlp", "mlp", "attention", "attention", "torch", "conv", "raw", "gru", "sub"])
    )
    heads = draw(st.sampled_from([2, 4, 8]))
    return {
        "kind": kind,
        "names": draw(st.sampled_from(NAMES)),
        "inner": draw(st.sampled_from([20, 18, 32])),
        "product": draw(st.sampled_from(["linear", "linear", "conv1d"])),
        "bias": draw(st.booleans()),
        "inner_norm": draw(st.sampled_from(["", "", "layer", "softmax"])),
        "heads": heads,
        "groups": draw(st.sampled_from([groups for groups in (1, 2, 4, 8) if heads % groups == 0])),
        "counted": draw(st.booleans()),
        "fused": draw(st.booleans()),
        "whole_norm": draw(st.sampled_from([False, False, True])),
        "within": draw(st.sampled_from(["self_attn", "self_attn", "thing"])),
    }


SPECS = st.fixed_dictionaries(
    {
        "blocks": st.lists(blocks(), min_size=2, max_size=4),
        "words": st.sampled_from([24, 23, 22]),
        "padding": st.sampled_from([None, 3]),
        "tied": st.sampled_from(["", "module", "function"]),
        "seed": st.integers(0, 99),
    }
)


def _ids(seed: int) -> Tensor:
    return torch.randint(22, (4, 6), generator=torch.Generator().manual_seed(seed))


def compare(rank: int, groups: Groups, given_: Any) -> dict[str, Any]:
    """Largest relative gaps, and how products are computed."""
    spec, grid, overrides = given_
    model, ids = build(spec), _ids(spec["seed"])
    whole = copy.deepcopy(model)
    wanted = loss(whole, ids)
    wanted.backward()
    grads = {name: p.grad for name, p in whole.named_parameters()}
    mesh = Mesh(grid, rank, pools.GROUPS)
    laid = lay_out(model, mesh, overrides=overrides, probe=lambda: loss(model, ids[:2]))
    data = mesh.peers("dp", "fsdp")
    with laid.gathered():
        with counted() as sent:
            got = loss(model, ids.chunk(data.size)[data.index])
        got.backward()
        laid.add_up_gathered()
    add_up_gradients(laid.parameters, laid.held, mesh)
    worst = 0.0
    for name, p in laid.parameters.items():
        right = (
            torch.zeros(laid.held[name].piece.shape, dtype=p.dtype) if grads[name] is None else grads[name]
        )
        assert right is not None
        mine = torch.zeros_like(p) if p.grad is None else p.grad
        gap = float((laid.assembled(name, mine) - right).abs().max()) / max(float(right.abs().max()), 1e-3)
        worst = max(worst, gap)
    square = squared_norm(laid.parameters, laid.held, mesh)
    told = torch.stack([got.detach(), square])
    torch.distributed.all_reduce(told, group=mesh.everyone.group)
    copies = mesh.grid.size // data.size
    right_norm = sum(float(g.square().sum()) for g in grads.values() if g is not None)
    return {
        "loss": abs(float(told[0]) / copies / float(wanted.detach()) - 1),
        "gradient": worst,
        "norm": abs(float(told[1]) / right_norm - 1),
        "computed": laid.computed,
        "bytes": laid.bytes,
        "calls": {kind: count for (kind, _), count in sent.calls.items()},
        "notes": laid.notes,
    }


def check(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert max(each["loss"], each["gradient"], each["norm"]) < 1e-9, each


@settings(max_examples=6)
@given(SPECS, st.sampled_from(GRIDS))
def test_any_module_computes_what_one_process_does(pool: Any, spec: dict[str, Any], grid: Grid) -> None:
    check(pool.run(compare, grid.size, (spec, grid, ()), grid))


@pytest.mark.long
@settings(max_examples=250)
@given(SPECS, st.sampled_from(GRIDS))
def test_many_modules_compute_what_one_process_does(pool: Any, spec: dict[str, Any], grid: Grid) -> None:
    check(pool.run(compare, grid.size, (spec, grid, ()), grid))


PLACES = (("attention", "self_attn"), ("mlp", "mlp"))


def _spec(**changes: Any) -> dict[str, Any]:
    block = {
        "names": NAMES[0], "inner": 32, "product": "linear", "bias": True, "inner_norm": "", "heads": 4,
        "groups": 4, "counted": True, "fused": False, "whole_norm": False,
    }  # fmt: skip
    attention, mlp = ({**block, "kind": kind, "within": within, **changes} for kind, within in PLACES)
    return {"blocks": [attention, mlp, attention, mlp], "words": 24, "padding": None, "tied": "", "seed": 5}


@pytest.mark.parametrize(
    "changes", [{}, {"fused": True}, {"groups": 2}, {"product": "conv1d"}, {"counted": False}]
)
def test_pairs_take_two_sums_a_block_and_a_tth_of_the_bytes(pool: Any, changes: dict[str, Any]) -> None:
    grid = Grid(tp=2)
    found = pool.run(compare, 2, (_spec(**changes), grid, ()), grid)
    check(found)
    products = {
        name: how
        for name, how in found[0]["computed"].items()
        if name.startswith("blocks.") and "weight" in name and "norm" not in name
    }
    # Where the module splits by numbers in a list, none that is known tells the heads: it stays alone.
    if changes.get("fused"):
        assert {how for name, how in products.items() if name.split(".")[1] in "02"} == {"in parts"}
        assert {how for name, how in products.items() if name.split(".")[1] in "13"} == {"in a pair"}
    else:
        assert set(products.values()) == {"in a pair"}, products
        # Two a block of attention and feed-forward, the table's and the chain's.
        assert found[0]["calls"]["all-reduce"] == 2 * 2 + 3, found[0]["calls"]


@pytest.mark.parametrize("norm", ["layer", "softmax"])
def test_what_looks_at_the_whole_width_is_found_out(pool: Any, norm: str) -> None:
    grid = Grid(tp=2)
    found = pool.run(compare, 2, (_spec(whole_norm=True, inner_norm=norm), grid, ()), grid)
    check(found)
    inside = {how for name, how in found[0]["computed"].items() if name.startswith("blocks.")}
    assert "in a pair" not in inside


def test_heads_that_do_not_divide_are_said(pool: Any) -> None:
    grid = Grid(tp=4)
    found = pool.run(compare, 4, (_spec(heads=4, groups=2), grid, ()), grid)
    check(found)
    how = {name: how for name, how in found[0]["computed"].items() if "_proj.weight" in name}
    assert {how[f"blocks.0.self_attn.{name}_proj.weight"] for name in "qkvo"} == {"in parts"}
    assert {how[f"blocks.1.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")} == {"in a pair"}


def test_a_person_can_say_how_weights_lie(pool: Any) -> None:
    grid = Grid(tp=2)
    wanted = ("lm_head=whole", "blocks.[02].self_attn.o_proj=out", "down_proj.bias=0")
    found = pool.run(compare, 2, (_spec(), grid, wanted), grid)
    check(found)
    assert found[0]["computed"]["lm_head.weight"] == "whole"
    assert found[0]["computed"]["blocks.0.self_attn.o_proj.weight"] == "in parts"


def _reads_parameters(rank: int, groups: Groups, grid: Grid) -> str:
    model, ids = build(_spec()), _ids(0)

    def penalised() -> Tensor:
        return loss(model, ids[:2]) + sum(p.square().sum() for p in model.parameters())

    try:
        lay_out(model, Mesh(grid, rank, pools.GROUPS), probe=penalised)
    except ShunterError as error:
        return str(error)
    return ""


def test_a_loss_that_reads_parameters_is_refused(pool: Any) -> None:
    for told in pool.run(_reads_parameters, 2, Grid(tp=2), Grid(tp=2)):
        assert "in one piece" in told
        assert "not its parameters" in told


def _stacked(rank: int, groups: Groups, given: tuple[str, Grid]) -> dict[str, Any]:
    """Three steps of descent: what begins at zero shows in the second. What training refuses is said."""
    torch.manual_seed(0)
    model = Stack(given[0]).double()
    whole, x = copy.deepcopy(model), torch.randn(4, 8, dtype=torch.float64)
    mesh = Mesh(given[1], rank, pools.GROUPS)
    laid = lay_out(model, mesh, probe=lambda: model(x).square().sum())
    ours = torch.optim.SGD(laid.parameters.values(), 0.05)
    theirs = torch.optim.SGD(whole.parameters(), 0.05)
    gap, calls = 0.0, [False, False, False]
    for call in calls:
        ours.zero_grad()
        theirs.zero_grad()
        a, b = model(x, call).square().sum(), whole(x, call).square().sum()
        a.backward()
        b.backward()
        add_up_gradients(laid.parameters, laid.held, mesh)
        for name, p in whole.named_parameters():
            mine, right = laid.parameters[name].grad, p.grad
            assert right is not None
            assert mine is not None
            far = (laid.assembled(name, mine) - right).abs().max() / max(float(right.abs().max()), 1e-6)
            gap = max(gap, float(far), abs(float(a.detach() - b.detach())))
        ours.step()
        theirs.step()
    with torch.no_grad():  # another form of call than was tried
        other = float((model(x, True) - whole(x, True)).abs().max())
        model.eval()
        whole.eval()
        other = max(other, float((model(x) - whole(x)).abs().max()))
    model.train()
    whole.train()
    return {
        "gap": gap,
        "other": other,
        "how": [laid.computed[f"layers.{n}.up_proj.weight"] for n in (0, 1)],
        "notes": laid.notes,
    }


@pytest.mark.parametrize(
    ("how", "second"),
    [
        ("", "in a pair"),
        ("flag", "in parts"),
        ("act", "in parts"),
        ("function", "in parts"),
        ("train", "in parts"),
        ("call", "in a pair"),
    ],
)
def test_what_a_block_does_is_not_told_by_another(pool: Any, how: str, second: str) -> None:
    grid = Grid(tp=2)
    for told in pool.run(_stacked, 2, (how, grid), grid):
        assert max(told["gap"], told["other"]) < 1e-9, told
        assert told["how"] == ["in parts" if how == "train" else "in a pair", second], told
        assert not told["notes"]


class Hit(nn.Module):
    """A mixture whose experts are computed where a token chose them, a loop as long as the longest row, and a
    layer left out where the rows say so."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(8, 8), nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.cell, self.seldom = nn.GRUCell(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, turns: int) -> Tensor:
        x = self.enter(x)
        chosen, found = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if (hit := chosen == number).any():
                found = found.index_put((hit,), expert(x[hit]))
        for _ in range(turns):
            x = self.cell(x, found)
        return x + self.seldom(x) if turns % 2 else x


def _by_rows(rank: int, groups: Groups, grid: Grid) -> dict[str, float]:
    """Two micro-batches, of other rows on each rank. The gaps to one process, and what was sent."""
    torch.manual_seed(0)
    model = Hit().double()
    whole = copy.deepcopy(model)
    x = torch.randn(16, 8, dtype=torch.float64)
    x = x[whole.gate(whole.enter(x)).argmax(-1).argsort(stable=True)]  # ranks' rows choose other experts
    rows = [(x[at : at + 4], 1 + at // 4) for at in range(0, 16, 4)]
    each = [whole(*row).square().sum() for row in rows]
    sum(each).backward()  # type: ignore[union-attr]
    mesh = Mesh(grid, rank, pools.GROUPS)
    laid = lay_out(model, mesh, probe=lambda: model(*rows[0]).square().sum())
    gaps = {"loss": 0.0, "gradient": 0.0}
    with counted() as sent, laid.gathered():
        for row, right in list(zip(rows, each, strict=True))[2 * rank : 2 * rank + 2]:
            got = model(*row).square().sum()
            gaps["loss"] = max(gaps["loss"], abs(float(got.detach() - right.detach())))
            got.backward()
        laid.add_up_gathered()
    add_up_gradients(laid.parameters, laid.held, mesh)
    for name, p in whole.named_parameters():
        right = torch.zeros_like(p) if p.grad is None else p.grad
        mine = laid.parameters[name].grad
        assert mine is not None
        gaps["gradient"] = max(gaps["gradient"], float((laid.assembled(name, mine) - right).abs().max()))
    return gaps | {"sent": sum(sent.calls.values())}


@pytest.mark.parametrize("grid", [Grid(fsdp=2), Grid(dp=2)], ids=["fsdp2", "dp2"])
def test_what_is_computed_may_depend_on_the_rows(pool: Any, grid: Grid) -> None:
    for told in pool.run(_by_rows, 2, grid, grid):
        assert max(told["loss"], told["gradient"]) < 1e-9, told
        # Once to bring together, once to add up, however many micro-batches.
        assert told["sent"] == (2 if grid.fsdp > 1 else 0)


def _outside(rank: int, groups: Groups, grid: Grid) -> str:
    model = Hit()
    laid = lay_out(model, Mesh(grid, rank, pools.GROUPS))
    with laid.gathered():
        model(torch.zeros(2, 8), 1)
    try:
        model(torch.zeros(2, 8), 1)
    except ShunterError as error:
        return str(error)
    return ""


def test_a_part_is_not_taken_for_the_weight(pool: Any) -> None:
    grid = Grid(fsdp=2)
    assert all("within `laid.gathered()`" in told for told in pool.run(_outside, 2, grid, grid))


def _second(rank: int, groups: Groups, grid: Grid) -> float:
    """A step of gradient descent inside the loss, differentiated: the gap of the outer gradient."""
    model, ids = build(_spec()), _ids(1)
    whole = copy.deepcopy(model)

    def adapted(net: Any) -> Tensor:
        names, values = zip(*net.named_parameters(), strict=True)
        inner = torch.autograd.grad(loss(net, ids[:2]), values, create_graph=True)
        moved = {n: v - 0.01 * g for n, v, g in zip(names, values, inner, strict=True)}
        logits = torch.func.functional_call(net, moved, (ids[2:],))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[2:, 1:].flatten())

    adapted(whole).backward()
    mesh = Mesh(grid, rank, pools.GROUPS)
    laid = lay_out(model, mesh)
    adapted(model).backward()
    add_up_gradients(laid.parameters, laid.held, mesh)
    worst = 0.0
    for name, p in whole.named_parameters():
        mine = laid.parameters[name].grad
        assert p.grad is not None
        assert mine is not None
        # A bias of keys has a gradient of zero but for rounding.
        gap = (laid.assembled(name, mine) - p.grad).abs().max() / max(float(p.grad.abs().max()), 1e-6)
        worst = max(worst, float(gap))
    return worst


def test_gradients_of_gradients_are_right(pool: Any) -> None:
    assert max(pool.run(_second, 2, Grid(tp=2), Grid(tp=2))) < 1e-9


def test_words_that_no_table_has_stay_an_error(pool: Any) -> None:
    assert pool.run(_beyond, 2, Grid(tp=2), Grid(tp=2)) == [True, True]


def _beyond(rank: int, groups: Groups, grid: Grid) -> bool:
    model = build(_spec())
    lay_out(model, Mesh(grid, rank, pools.GROUPS))
    try:
        model.embed(torch.tensor([[24]]))
    except IndexError:
        return True
    return False


def test_one_process_needs_nothing() -> None:
    model = build(_spec())
    forward = {name: module.forward for name, module in model.named_modules()}
    laid = lay_out(model, Mesh(Grid(), 0, pools.GROUPS))
    assert {name: module.forward for name, module in model.named_modules()} == forward
    assert laid.parameters["embed.weight"].shape == (24, WIDTH)
