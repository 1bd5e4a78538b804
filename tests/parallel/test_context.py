"""Context parallelism on real processes: output and gradients of one process, whoever holds what.

What this cannot show: the CUDA operators (their signatures alone are checked, on the meta device), NCCL, and
speed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.context_traffic import Traffic, traffic
from shunter.parallel.context import sight as sight_module
from shunter.parallel.context import ulysses as ulysses_module
from shunter.parallel.context.attend import ContextSight, attend
from shunter.parallel.context.blockwise import Backward, Forward
from shunter.parallel.context.sight import Sight, Tile
from shunter.parallel.context.zigzag import zigzag
from shunter.parallel.counted import counted
from shunter.parallel.mesh import Groups, Peers
from tests.parallel.pool import Pool

KINDS = ("ring", "gather", "ulysses")


def data_of(case: dict[str, Any]) -> tuple[Tensor, ...]:
    """q, k, v and the output's gradient of whole rows."""
    draw = torch.Generator().manual_seed(case["seed"])
    rows, heads, kv, length, width = case["shape"]
    sizes = (heads, kv, kv, heads)
    return tuple(
        torch.randn(rows, count, length, width, generator=draw, dtype=torch.float64).to(case["dtype"])
        for count in sizes
    )


def segments_of(case: dict[str, Any]) -> Tensor | None:
    """Documents cut at random, some rows with padding behind them."""
    if case["documents"] == 0:
        return None
    draw = torch.Generator().manual_seed(case["seed"] + 1)
    rows, _, _, length, _ = case["shape"]
    starts = torch.rand(rows, length, generator=draw) < case["documents"] / length
    found = starts.cumsum(dim=1)
    for row in range(0, rows, 2):
        found[row, length - int(torch.randint(length // 2, (), generator=draw)) :] = -1
    return found


def reference(case: dict[str, Any]) -> list[Tensor]:
    """Output and gradients by plain products over the whole row."""
    q, k, v, grad = data_of(case)
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    at = torch.arange(length)
    gap = at[:, None] - at
    seen = (gap >= 0)[None, None]
    if case["window"] is not None:
        seen = seen & (gap < case["window"])
    segments = segments_of(case)
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])
    keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    out = scores.softmax(dim=-1) @ values
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double())]


def task(rank: int, groups: Groups, case: dict[str, Any]) -> list[Tensor]:
    size = len(groups.ranks)
    peers = Peers(groups.side if size > 1 else None, groups.ranks, rank)
    mine = zigzag(case["shape"][3], size)[rank]
    q, k, v, grad = (x[:, :, mine] for x in data_of(case))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    segments: Any = segments_of(case)
    with mock.patch.object(sight_module, "TILE", case["tile"]):
        if case["seed"] % 2:
            segments = ContextSight(case["shape"][3], size, segments, case["window"])
        out = attend(q, k, v, segments, peers, kind=case["kind"], window=case["window"])
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def found(pool: Pool, case: dict[str, Any], size: int) -> list[Tensor]:
    """Output and gradients of whole rows."""
    return put_together(case, pool.run(task, size, case), size)


def put_together(case: dict[str, Any], every: list[list[Tensor]], size: int) -> list[Tensor]:
    back = torch.cat(zigzag(case["shape"][3], size)).argsort()
    return [torch.cat(parts, dim=2)[:, :, back] for parts in zip(*every, strict=True)]


def judge(case: dict[str, Any], every: list[list[Tensor]], size: int) -> None:
    names = ("out", "q", "k", "v")
    for name, ours, theirs in zip(names, put_together(case, every, size), reference(case), strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12 * scale, msg=f"{name} {case}")


def compare(pool: Pool, case: dict[str, Any], size: int) -> None:
    judge(case, pool.run(task, size, case), size)


@st.composite
def cases(draw: Any) -> tuple[dict[str, Any], int]:
    size = draw(st.sampled_from([1, 2, 3, 4]))
    kv = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(KINDS))
    heads = kv * draw(st.integers(1, 3))
    if kind == "ulysses":
        heads = math.lcm(heads, size)
    length = 2 * size * draw(st.integers(1, 9))
    return {
        "kind": kind,
        "shape": (draw(st.integers(1, 3)), heads, kv, length, draw(st.sampled_from([4, 8]))),
        "documents": draw(st.sampled_from([0, 0, 1, 4, 12])),
        "window": draw(st.sampled_from([None, None, 1, 3, length // 2 + 1, length])),
        "tile": draw(st.sampled_from([2, 4, 8, 256])),
        "seed": draw(st.integers(0, 1000)),
        "dtype": torch.float64,
    }, size  # fmt: skip


@settings(max_examples=30)
@given(cases())
def test_output_and_gradients_are_those_of_one_process(pool: Pool, drawn: Any) -> None:
    compare(pool, *drawn)


@pytest.mark.long
@settings(max_examples=1000)
@given(cases())
def test_many_more_of_them(pool: Pool, drawn: Any) -> None:
    compare(pool, *drawn)


def fixed(kind: str, **changed: Any) -> dict[str, Any]:
    return {
        "kind": kind, "shape": (2, 6, 2, 36, 8), "documents": 3, "window": None, "tile": 4, "seed": 7,
        "dtype": torch.float64, **changed,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("documents", [0, 3])
def test_bfloat16_is_as_near_as_that_of_one_process(pool: Pool, kind: str, documents: int) -> None:
    case = fixed(kind, dtype=torch.bfloat16, documents=documents, tile=256)
    expected = reference(case)
    alone = found(pool, case, 1)
    for ours, single, exact in zip(found(pool, case, 3), alone, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        error, usual = ((x.double() - exact).abs().max().item() for x in (ours, single))
        assert error <= 1.5 * usual + 1e-3 * exact.abs().max().item()


def saved_bytes(rank: int, groups: Groups, case: dict[str, Any]) -> tuple[int, int]:
    """What autograd keeps of a ring, and what q, k, v, output and log-sum-exp are."""
    size = len(groups.ranks)
    mine = zigzag(case["shape"][3], size)[rank]
    q, k, v, _ = (x[:, :, mine].clone() for x in data_of(case))
    k, v = torch.cat([q, k, v], dim=1).split([len(q[0]), len(k[0]), len(v[0])], dim=1)[1:]  # views
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        peers = Peers(groups.side, groups.ranks, rank)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, segments_of(case), peers, kind=case["kind"])
    local = sum(x.nbytes for x in (q, k, v, out)) + out[..., 0].numel() * 8
    return sum(x.untyped_storage().nbytes() for x in kept), local


def test_a_ring_keeps_its_own_part_alone(pool: Pool) -> None:
    for kept, local in pool.run(saved_bytes, 3, fixed("ring")):
        assert kept == local


def traffic_task(rank: int, groups: Groups, case: dict[str, Any]) -> tuple[int, int]:
    size = len(groups.ranks)
    peers = Peers(groups.side, groups.ranks, rank)
    q, k, v, grad = (x[:, :, zigzag(case["shape"][3], size)[rank]] for x in data_of(case))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with counted() as there:
        out = attend(*inputs, segments_of(case), peers, kind=case["kind"], window=case["window"])
    with counted() as back:
        torch.autograd.grad(out, inputs, grad)
    return there.total(), back.total()


@settings(max_examples=16)
@given(
    st.sampled_from(KINDS),
    st.integers(2, 4),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_bytes_are_those_of_the_formula(
    pool: Pool, kind: Any, size: int, kv: int, dtype: torch.dtype
) -> None:
    rows, heads, length, width = 2, kv * 12, 12 * size, 4
    case = fixed(kind, shape=(rows, heads, kv, length, width), dtype=dtype, documents=0)
    sent = pool.run(traffic_task, size, case)
    shape = (rows, length, heads, kv, width, size, dtype.itemsize)
    for index, (forward, backward) in enumerate(sent):
        assert traffic(kind, *shape, index=index) == Traffic(forward, backward)
    mean = traffic(kind, *shape)
    assert mean.forward == math.ceil(sum(forward for forward, _ in sent) / size)
    assert mean.total == pytest.approx(sum(map(sum, sent)) / size, abs=2)
    once = 2 * rows * kv * length // size * width * dtype.itemsize * (size - 1)
    assert mean.forward == {"ring": once * 3 // 4, "gather": once}.get(kind, mean.forward)


@pytest.mark.parametrize("changed", [{"documents": 6}, {"window": 5, "documents": 0}, {"documents": 0}])
@pytest.mark.parametrize("size", [2, 3])
def test_bytes_of_a_ring_are_those_of_its_routes(pool: Pool, size: int, changed: dict[str, Any]) -> None:
    case = fixed("ring", tile=256, **changed)
    rows, heads, kv, length, width = case["shape"]
    routes = ContextSight(length, size, segments_of(case), case["window"]).routes
    for index, sent in enumerate(pool.run(traffic_task, size, case)):
        told = traffic("ring", rows, length, heads, kv, width, size, 8, index, routes)
        assert told == Traffic(*sent)
        if case["window"]:
            assert (
                told.total < traffic("ring", rows, length, heads, kv, width, size, 8, index).total
                or size == 2
            )


@pytest.mark.parametrize(
    ("kind", "shape", "text"),
    [
        ("ulysses", (1, 6, 2, 4, 8), r"6 query heads .* 4 context ranks. Use cp=3, or the kind ring"),
        ("ring", (1, 6, 2, 3, 8), "rows of 12 tokens cannot be cut in 8 equal chunks.* Use rows of 8 or 16"),
        ("gathered", (1, 6, 2, 4, 8), "Use ring, gather or ulysses"),
    ],
)
def test_what_cannot_be_is_refused(kind: str, shape: tuple[int, ...], text: str) -> None:
    q, k, v, _ = data_of(fixed(kind, shape=shape))
    peers, called = Peers(None, (0, 1, 2, 3), 0), cast("Any", kind)
    with pytest.raises(ShunterError, match=text):
        attend(q, k, v, None, peers, kind=called)


def top_left() -> Any:
    """Masks of a tile that count from the tile's own corner."""
    mask = Sight.mask

    def wrong(self: Sight, tile: Tile) -> Tensor:
        shape = mask(self, tile).shape
        return torch.ones(shape, dtype=torch.bool).tril()

    return mock.patch.object(Sight, "mask", wrong)


def causal_everywhere() -> Any:
    """The plain case of the same: every square block is taken for one on the diagonal."""
    tiles = Sight.tiles

    def wrong(self: Sight, rows: range, columns: range) -> list[Tile]:
        found = tiles(self, rows, columns)
        return [replace(tile, causal=len(tile.rows) == len(tile.columns)) for tile in found]

    return mock.patch.object(Sight, "tiles", wrong)


def no_correction() -> Any:
    """Outputs of tiles are averaged as if their sums of exponentials were the same."""
    merge = Forward._merge

    def wrong(self: Forward, mine: slice, out: Tensor, lse: Tensor) -> None:
        first = self.lse[:, :, mine] == -math.inf
        merge(self, mine, out, torch.where(first, lse, self.lse[:, :, mine]))

    return mock.patch.object(Forward, "_merge", wrong)


def wrong_step() -> Any:
    """Gradients of keys go to the block of the step before."""
    visit, before = Backward.visit, {}

    def wrong(self: Backward, columns: range, k: Tensor, v: Tensor, back_k: Tensor, back_v: Tensor) -> None:
        visit(self, columns, k, v, *before.get(id(self), (back_k, back_v)))
        before[id(self)] = back_k, back_v

    return mock.patch.object(Backward, "visit", wrong)


def own_share_only() -> Any:
    """Gathered keys' gradients are taken from the own queries alone."""
    return mock.patch.object(
        dist, "reduce_scatter_single", lambda own, parts, group: own.copy_(parts[: len(own)])
    )


def order_kept() -> Any:
    """Tokens stay in the order in which the ranks hold them, where the kernel takes them for the row's."""
    return mock.patch.object(
        ulysses_module, "in_order", lambda parts, dim: parts.movedim(0, dim).flatten(dim, dim + 1)
    )


MUTANTS = {
    "top left": (top_left, "ring", {"documents": 3}),
    "top left, gathered": (top_left, "gather", {"documents": 3}),
    "causal everywhere": (causal_everywhere, "ring", {"documents": 0}),
    "no correction": (no_correction, "ring", {"documents": 0}),
    "no correction, gathered": (no_correction, "gather", {"documents": 0}),
    "wrong step": (wrong_step, "ring", {"documents": 0}),
    "own share only": (own_share_only, "gather", {"documents": 0}),
    "order kept": (order_kept, "ulysses", {"documents": 0}),
}


def broken_task(rank: int, groups: Groups, given: tuple[str, dict[str, Any]]) -> list[Tensor]:
    name, case = given
    with MUTANTS[name][0]():
        return task(rank, groups, case)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_mechanism_is_seen(pool: Pool, name: str) -> None:
    _, kind, changed = MUTANTS[name]
    case = fixed(kind, **changed)
    compare(pool, case, 3)
    every = pool.run(broken_task, 3, (name, case))
    with pytest.raises(AssertionError):
        judge(case, every, 3)
