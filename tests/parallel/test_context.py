"""Context parallelism on real processes: output and gradients of one process, whoever holds what.

What this cannot show: the CUDA operators (their signatures alone are checked, on the meta device), NCCL, and
speed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shunter.parallel.context import sight as sight_module
from shunter.parallel.context.attend import ContextSight, attend
from shunter.parallel.context.zigzag import zigzag
from shunter.parallel.mesh import Peers
from shunter.parallel.transport import Groups
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
    sight_module.TILE = case["tile"]
    size = len(groups.ranks)
    peers = Peers(groups.side if size > 1 else None, groups.ranks, rank)
    mine = zigzag(case["shape"][3], size)[rank]
    q, k, v, grad = (x[:, :, mine] for x in data_of(case))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    segments: Any = segments_of(case)
    if case["seed"] % 2:
        segments = ContextSight(case["shape"][3], size, segments, case["window"])
    out = attend(q, k, v, segments, peers, kind=case["kind"], window=case["window"])
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def found(pool: Pool, case: dict[str, Any], size: int) -> list[Tensor]:
    """Output and gradients of whole rows, put together."""
    every = pool.run(task, size, case)
    back = torch.cat(zigzag(case["shape"][3], size)).argsort()
    return [torch.cat(parts, dim=2)[:, :, back] for parts in zip(*every, strict=True)]


def compare(pool: Pool, case: dict[str, Any], size: int) -> None:
    for name, ours, theirs in zip(
        ("out", "q", "k", "v"), found(pool, case, size), reference(case), strict=True
    ):
        assert ours.dtype == case["dtype"]
        scale = theirs.abs().max().item()
        torch.testing.assert_close(
            ours, theirs, rtol=1e-9, atol=1e-12 * max(1.0, scale), msg=f"{name} {case}"
        )


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


@settings(max_examples=60)
@given(cases())
def test_output_and_gradients_are_those_of_one_process(pool: Pool, drawn: Any) -> None:
    compare(pool, *drawn)
