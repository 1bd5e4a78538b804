"""Modules whose code goes different ways, laid out without a declaration: what one process computes.

Drawn are, for each block of one class, flags, submodules without weights, functions and numbers that change
what it computes; outputs that begin at zero, and so hide what stands before them in the first step; branches
of training alone, and of calls of another form; frozen weights; blocks that are used twice; experts that are
called where a token chose them; layers that only some rows take; [T, B, D] order. Losses and every gradient
of three steps of descent, and what evaluation and another form of call give after them, within 1e-9 of one
process in float64. Rows differ between data ranks, and are others than those that were tried.

What this cannot show: dropout (tests/train/task), a call in training of a form that was not tried where that
is refused, modules of other people (test_published.py), NCCL.
"""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shunter.layout.grid import Grid
from shunter.parallel.generic import laid as laying
from shunter.parallel.generic import pairs
from shunter.parallel.generic.gathered import Gathered
from shunter.parallel.generic.laid import lay_out
from shunter.parallel.gradients import add_up_gradients
from shunter.parallel.mesh import Groups, Mesh
from tests.parallel import pool as pools
from tests.parallel.generic.drawn import ACTS, FUNCTIONS, build, loss

GRIDS = [Grid(tp=2), Grid(tp=2), Grid(tp=4), Grid(tp=2, dp=2), Grid(fsdp=2), Grid(fsdp=2, dp=2), Grid(dp=2)]
ROWS, STEPS, WORDS = 4, 3, 22


def seldom() -> st.SearchStrategy[bool]:
    return st.sampled_from([False, False, False, True])


BLOCKS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["feed", "feed", "heads", "mixture"]),
        "bias": st.booleans(),
        "act": st.sampled_from(["gelu", *sorted(ACTS)]),
        "function": st.sampled_from(["", "", *sorted(FUNCTIONS)]),
        "normed": seldom(),
        "train": seldom(),
        "scale": st.sampled_from([1.0, 0.5]),
        "gain": seldom(),
        "zero": st.booleans(),
        "frozen": seldom(),
        "heads": st.sampled_from([2, 4, 8]),
    }
)
SPECS = st.fixed_dictionaries(
    {
        "blocks": st.lists(BLOCKS, min_size=2, max_size=4),
        "uses": st.lists(st.integers(0, 3), min_size=2, max_size=5),
        "order": st.sampled_from(["btd", "tbd"]),
        "seldom": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


def ids(seed: int, step: int) -> Tensor:
    """Rows of a step; sorted, so that data ranks choose other experts and other ways."""
    draw = torch.Generator().manual_seed(1000 * step + seed)
    made = torch.randint(WORDS, (ROWS, 6), generator=draw)
    return made[(made[:, 0] % 2).argsort(stable=True)]


def compare(rank: int, groups: Groups, request: tuple[dict[str, Any], Grid]) -> dict[str, Any]:
    spec, grid = request
    model = build(spec)
    whole, tried = copy.deepcopy(model), ids(spec["seed"], 9)[:2]
    mesh = Mesh(grid, rank, pools.GROUPS)
    laid = lay_out(model, mesh, probe=lambda: loss(model, tried))
    data = mesh.peers("dp", "fsdp")
    trained = {name for name, p in whole.named_parameters() if p.requires_grad}
    ours = torch.optim.SGD([laid.parameters[name] for name in sorted(trained)], 0.02)
    theirs = torch.optim.SGD([p for _, p in sorted(whole.named_parameters()) if p.requires_grad], 0.02)
    wrong: list[str] = []
    for step in range(STEPS):
        rows = ids(spec["seed"], step)
        ours.zero_grad()
        theirs.zero_grad()
        right = loss(whole, rows)
        right.backward()
        with laid.gathered():
            got = loss(model, rows.chunk(data.size)[data.index])
            got.backward()
            laid.add_up_gathered()
        add_up_gradients(laid.parameters, laid.held, mesh)
        total = got.detach().clone()
        if data.size > 1:
            torch.distributed.all_reduce(total, group=data.group)
        if not abs(float(total / right.detach()) - 1) < 1e-9:
            wrong.append(f"loss of step {step}")
        most = max(float(p.grad.abs().max()) for p in whole.parameters() if p.grad is not None)
        for name, p in whole.named_parameters():
            if name not in trained:
                continue
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            part = laid.parameters[name]
            mine = laid.assembled(name, torch.zeros_like(part) if part.grad is None else part.grad)
            scale = max(float(expected.abs().max()), 1e-4 * most)
            if not float((mine - expected).abs().max()) < 1e-9 * scale:
                wrong.append(f"gradient of {name}, step {step}")
        ours.step()
        theirs.step()
    rows = ids(spec["seed"], STEPS)
    with torch.no_grad(), laid.gathered():
        model.eval()
        whole.eval()
        for wide in (False, True):
            if not torch.allclose(model(rows, wide), whole(rows, wide), rtol=1e-9, atol=1e-9):
                wrong.append(f"evaluation, wide={wide}")
    return {"wrong": wrong, "computed": laid.computed, "notes": laid.notes}


def check(pool: Any, spec: dict[str, Any], grid: Grid) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pool.run(compare, grid.size, (spec, grid), grid)
    assert not any(each["wrong"] for each in found), found
    return found


@settings(max_examples=3)
@given(SPECS, st.sampled_from(GRIDS))
def test_whatever_way_code_takes(pool: Any, spec: dict[str, Any], grid: Grid) -> None:
    check(pool, spec, grid)


@pytest.mark.long
@settings(max_examples=400)
@given(SPECS, st.sampled_from(GRIDS))
def test_four_hundred_modules(pool: Any, spec: dict[str, Any], grid: Grid) -> None:
    check(pool, spec, grid)


def _used_alone(self: Gathered) -> None:
    """What this rank's rows made, and nothing of the others'."""
    for name, whole in self.wholes.items():
        if whole.grad is not None:
            parts = whole.grad.chunk(self.peers.size, self.dims[name])
            self.parts[name].grad = parts[self.peers.index].clone()


def _any_call(self: pairs.Pair, module: nn.Module, args: Any, named: Any) -> Any:
    return self._take_heads(args, named) if self.on else None


def _class_alone(module: nn.Module) -> str:
    return type(module).__name__


FEED = {
    "kind": "feed", "bias": True, "act": "gelu", "function": "", "normed": False, "train": False,
    "scale": 1.0, "gain": False, "zero": True, "frozen": False, "heads": 2,
}  # fmt: skip
# A mistake put in, and what the second block does otherwise than the first.
MUTANTS: dict[str, tuple[Any, str, Any, dict[str, Any], Grid]] = {
    "one verdict for a class, flags": (pairs, "described", _class_alone, {"normed": True}, Grid(tp=2)),
    "one verdict for a class, training": (pairs, "described", _class_alone, {"train": True}, Grid(tp=2)),
    "a call of any form": (pairs.Pair, "_enter", _any_call, {}, Grid(tp=2)),
    "rows of one rank alone": (Gathered, "add_up", _used_alone, {}, Grid(fsdp=2)),
}


def broken(rank: int, groups: Groups, name: str) -> list[str]:
    """What is wrong, without the last checks, which would stop most mistakes before."""
    where, attribute, instead, changes, grid = MUTANTS[name]
    blocks = [FEED, {**FEED, **changes}]
    spec = {"blocks": blocks, "uses": [0, 1], "order": "tbd", "seldom": True, "seed": 1}
    with (
        mock.patch.object(where, attribute, instead),
        mock.patch.object(laying, "_agree", return_value=True),
        mock.patch.object(laying, "_same_gradients", return_value=True),
    ):
        wrong: list[str] = compare(rank, groups, (spec, grid))["wrong"]
        return wrong


@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_are_seen(pool: Any, name: str) -> None:
    grid = MUTANTS[name][4]
    assert any(pool.run(broken, grid.size, name, grid))
