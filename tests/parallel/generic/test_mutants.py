"""Known mistakes of this kind of layout, put in on purpose: the comparison of test_laid.py sees each.

A bias added by every rank, gradients of norms on heads left in parts, projections cut as one block, a table's
foreign rows, sums that are missing forward or backward; and a trial that believes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch.nn.functional as F
from torch import Tensor

from shunter.layout.fused import Heads
from shunter.layout.grid import Grid
from shunter.parallel.generic import laid as laying
from shunter.parallel.generic import pairs, products, shards, trial
from shunter.parallel.generic.gathered import Gathered
from shunter.parallel.generic.products import Entrance, Product, Table
from shunter.parallel.mesh import Groups
from tests.parallel.generic.test_laid import _spec, _stacked, compare


def bias_of_every_rank(self: Product, x: Tensor) -> Tensor:
    weight, bias = (self.module._parameters[name] for name in ("weight", "bias"))
    assert weight is not None
    if self.cut.output:
        y = F.linear(self.entrance(x) if self.entrance else products.enter(x, self.peers), weight, bias)
        return y if self.entrance else products.bring(y, -1, self.peers, self.cut.blocks)
    return products.leave(
        F.linear(x if self.entrance else products.take(x, -1, self.peers), weight, bias), self.peers
    )


def one_block(self: Heads, name: str, size: int, parts: int) -> list[int]:
    return [size]


def believed(wanted: Any, got: Any, peers: Any) -> frozenset[str]:
    return frozenset()


def used_alone(self: Gathered) -> None:
    """What this rank made, without what the others did."""
    for name, whole in self.wholes.items():
        self.parts[name].grad = whole.grad.chunk(self.peers.size, self.dims[name])[self.peers.index].clone()  # type: ignore[union-attr]


def never_parted(original: Any) -> Callable[..., Any]:
    return lambda *given: None if original(*given) is None else frozenset()


def first_rows(self: Table, ids: Tensor) -> Tensor:
    weight = self.module._parameters["weight"]
    assert weight is not None
    return products.leave(F.embedding(ids % len(weight), weight), self.peers)


MUTANTS: dict[str, tuple[Any, str, Any, dict[str, Any]]] = {
    "gathered weights' gradients not added up": (Gathered, "add_up", used_alone, {"grid": Grid(fsdp=2)}),
    "every rank adds the bias": (Product, "__call__", bias_of_every_rank, {}),
    "no sum behind the second product": (products, "leave", lambda x, peers: x, {}),
    "no sum of gradients before the first": (products, "enter", lambda x, peers: x, {}),
    "a product alone keeps its outputs": (products, "bring", lambda x, *more: x.repeat(1, 1, 2), {}),
    "foreign rows of a table": (Table, "_found", first_rows, {}),
    "q, k and v cut as one block": (Heads, "blocks", one_block, {"fused": True}),
    "the trial believes all": (trial, "_compared", believed, {"inner_norm": "softmax"}),
    "norms of heads left in parts": (trial, "_compared", never_parted(trial._compared), {}),
    "gathered weights without their blocks": (
        shards, "bring", lambda x, dim, peers, blocks: laying.bring(x, dim, peers), {"fused": True},
    ),
}  # fmt: skip
# Not a mistake of the result: the trial finds the block cut wrong, and computes the product alone.
HARMLESS = {"q, k and v cut as one block", "gathered weights without their blocks"}


def broken(rank: int, groups: Groups, given: tuple[str, Grid]) -> str:
    """What the comparison says of a mutant: "" when it sees nothing."""
    where, attribute, instead, changes = MUTANTS[given[0]]
    changes = {name: value for name, value in changes.items() if name != "grid"}
    # Without the last checks of loss and gradients, which would stop most of them before the comparison.
    with (
        mock.patch.object(where, attribute, instead),
        mock.patch.object(laying, "_agree", return_value=True),
        mock.patch.object(laying, "_same_gradients", return_value=True),
    ):
        found = compare(rank, groups, (_spec(**changes), given[1], ()))
    gap = max(found["loss"], found["gradient"], found["norm"])
    return "seen" if not gap < 1e-9 else ""


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in HARMLESS])
def test_mutants_are_seen(pool: Any, name: str) -> None:
    grid = MUTANTS[name][3].get("grid", Grid(tp=2))
    assert "seen" in pool.run(broken, 2, (name, grid), grid)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_wrong_cut_of_projections_is_computed_right(pool: Any, name: str) -> None:
    """A wrong guess of what stands in a fused product costs messages, not the result."""
    grid = Grid(tp=2)
    assert pool.run(broken, 2, (name, grid), grid) == ["", ""]


def _refused(rank: int, groups: Groups, grid: Grid) -> bool:
    """With the check of the loss in place, a trial that believes all does no harm either."""
    with mock.patch.object(trial, "_compared", believed):
        found = compare(rank, groups, (_spec(inner_norm="softmax"), grid, ()))
    return bool(found["notes"]) and found["gradient"] < 1e-9


def test_the_loss_is_the_second_net(pool: Any) -> None:
    assert pool.run(_refused, 2, Grid(tp=2), Grid(tp=2)) == [True, True]


def _by_class(rank: int, groups: Groups, grid: Grid) -> bool:
    """One verdict for all blocks of a class; the loss sees nothing, because their outputs begin at zero."""
    with mock.patch.object(pairs, "described", lambda module: type(module).__name__):
        found = _stacked(rank, groups, ("act", grid))
    return bool(found["notes"]) and found["gap"] < 1e-9


def test_gradients_are_the_third_net(pool: Any) -> None:
    assert pool.run(_by_class, 2, Grid(tp=2), Grid(tp=2)) == [True, True]


def test_a_share_is_computed_once(pool: Any) -> None:
    """Queries, keys and values share one sum of gradients: without that there are more."""
    grid = Grid(tp=2)
    (few, _), (many, _) = (pool.run(_sums, 2, (grid, share), grid) for share in (True, False))
    assert few < many


def _sums(rank: int, groups: Groups, given: tuple[Grid, bool]) -> int:
    from shunter.parallel.counted import counted

    def apart(self: Entrance, x: Tensor) -> Tensor:
        return products.enter(x, self.peers)

    keep = Entrance.__call__ if given[1] else apart
    with mock.patch.object(Entrance, "__call__", keep), counted() as sent:
        compare(rank, groups, (_spec(), given[0], ()))
    return sum(count for (kind, _), count in sent.calls.items() if kind == "all-reduce")
