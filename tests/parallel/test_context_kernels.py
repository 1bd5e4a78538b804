"""One tile of attention: every operator against plain products, and tiles against the whole mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.parallel.context import kernels
from shunter.parallel.context import sight as sight_module
from shunter.parallel.context.blockwise import Forward
from shunter.parallel.context.routes import Routes
from shunter.parallel.context.sight import Sight
from shunter.parallel.context.zigzag import chunks, in_order, in_parts, zigzag


def tile(dtype: torch.dtype, causal: bool, masked: bool, device: str = "cpu") -> dict[str, Any]:
    """q, k, v, a mask whose third row sees nothing, and a gradient."""
    draw = torch.Generator().manual_seed(1)
    rows, columns = 12, 12 if causal else 20
    shapes = {"grad": (2, 6, rows, 8), "q": (2, 6, rows, 8), "k": (2, 2, columns, 8), "v": (2, 2, columns, 8)}
    made = {name: torch.randn(shape, generator=draw).to(device, dtype) for name, shape in shapes.items()}
    mask = torch.rand(2, 1, rows, columns, generator=draw) > 0.5
    mask[:, :, 3] = False
    return {**made, "causal": causal, "mask": mask.to(device) if masked else None}


def both_passes(
    forward: Callable[..., Any], backward: Callable[..., Any], given: dict[str, Any]
) -> list[Tensor]:
    grad = given["grad"]
    rest = {name: value for name, value in given.items() if name != "grad"}
    out, lse = forward(*rest.values())
    # As if half of the softmax were elsewhere.
    more = lse.masked_fill(lse == -math.inf, 0.0) + math.log(2)
    q, k, v = (given[name] for name in "qkv")
    return [out, lse, *backward(grad, q, k, v, out, more, given["causal"], given["mask"])]


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_operator_computes_what_plain_products_do(dtype: torch.dtype, causal: bool, masked: bool) -> None:
    given = tile(dtype, causal, masked)
    assert kernels._kernel(given["q"], given["mask"]) == "cpu"
    ours = both_passes(kernels.forward, kernels.backward, given)
    theirs = both_passes(kernels.by_hand, kernels.by_hand_backward, given)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=bound, atol=bound)
    if masked:
        assert (ours[1][:, :, 3] == -math.inf).all()
        assert not ours[0][:, :, 3].any()


@pytest.mark.parametrize("causal", [False, True])
def test_by_hand_is_autograd_s(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    monkeypatch.setattr(kernels, "ROWS", 5)  # several pieces
    given = tile(torch.float64, causal, False)
    q, k, v = (given[name].requires_grad_() for name in "qkv")
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    out, lse = kernels.by_hand(q, k, v, causal, None)
    torch.testing.assert_close(out, expected)
    found = kernels.by_hand_backward(given["grad"], q, k, v, out, lse, causal, None)
    for mine, other in zip(found, torch.autograd.grad(expected, (q, k, v), given["grad"]), strict=True):
        torch.testing.assert_close(mine, other)


def test_cuda_operators_take_these_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    # Shapes alone, on the meta device.
    monkeypatch.setattr(kernels, "_kernel", lambda q, mask: "cuda")
    given = tile(torch.bfloat16, True, False, "meta")
    out, lse, *grads = both_passes(kernels.forward, kernels.backward, given)
    assert out.shape == given["q"].shape
    assert (lse.shape, lse.dtype) == (out.shape[:3], torch.float32)
    assert [grad.shape for grad in grads] == [given[name].shape for name in "qkv"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
def test_cuda_operators_compute_what_plain_products_do(causal: bool) -> None:
    given = tile(torch.bfloat16, causal, False, "cuda")
    assert kernels._kernel(given["q"], None) == "cuda"
    ours = both_passes(kernels.forward, kernels.backward, given)
    theirs = both_passes(kernels.by_hand, kernels.by_hand_backward, given)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=4e-2, atol=4e-2)


@given(st.integers(1, 40), st.integers(0, 12), st.sampled_from([None, 1, 3, 20]), st.data())
def test_tiles_cover_exactly_what_is_seen(length: int, documents: int, window: int | None, data: Any) -> None:
    draw = torch.Generator().manual_seed(documents)
    segments = (torch.rand(2, length, generator=draw) < documents / length).cumsum(dim=1)
    if data.draw(st.booleans()):  # not in order: only then do extents of tiles overlap without a match
        segments = segments[:, torch.randperm(length, generator=draw)]
    at = torch.arange(length)
    seen = (at[:, None] >= at) & (segments[:, :, None] == segments[:, None, :])
    if window is not None:
        seen &= at[:, None] - at < window
    cut = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2)))
    rows, columns = range(length), range(*cut)
    sight_module.TILE, kept = data.draw(st.sampled_from([1, 3, 8])), sight_module.TILE
    try:
        sight = Sight(length, segments if documents else None, window)
        found = torch.zeros_like(seen, dtype=torch.int64)
        for part in sight.tiles(rows, columns):
            assert not (part.causal and part.masked)
            mask = torch.ones(1, 1, len(part.rows), len(part.columns), dtype=torch.bool)
            mask = sight.mask(part) if part.masked else mask.tril() if part.causal else mask
            found[:, part.rows.start : part.rows.stop, part.columns.start : part.columns.stop] += mask[:, 0]
        assert sight.sees(rows, columns) >= bool(seen[:, :, cut[0] : cut[1]].any())
    finally:
        sight_module.TILE = kept
    expected = seen.long()
    expected[:, :, : cut[0]] = expected[:, :, cut[1] :] = 0
    assert torch.equal(found, expected)


def test_a_query_that_sees_nothing_yet_waits_for_its_first_key() -> None:
    run = Forward(torch.ones(1, 1, 2, 4), [range(2)], Sight(2))
    nothing = torch.tensor([[[0.5, -math.inf]]])
    run._merge(slice(0, 2), torch.ones(1, 1, 2, 4), torch.tensor([[[0.0, 0.0]]]))
    run._merge(slice(0, 2), torch.zeros(1, 1, 2, 4), nothing)
    assert run.out[0, 0, 1].tolist() == [1, 1, 1, 1]
    assert run.lse[0, 0, 1] == 0


@given(st.integers(1, 6), st.integers(1, 5))
def test_zigzag(size: int, chunk: int) -> None:
    length = 2 * size * chunk
    places = zigzag(length, size)
    assert torch.cat(places).sort().values.tolist() == list(range(length))
    assert len({int((part + 1).sum()) for part in places}) == 1, "pairs of query and key are the same for all"
    rows = torch.arange(3 * length * 2).view(3, length, 2)
    parts = in_parts(rows, size, 1)
    for part, place in zip(parts, places, strict=True):
        assert torch.equal(part, rows[:, place])
    assert torch.equal(in_order(parts, 1), rows)


@pytest.mark.parametrize(
    ("length", "size", "mend"),
    [(10, 2, "rows of 8 or 12 tokens"), (5, 3, "rows of 6 tokens at least"), (100, 3, "96 or 102")],
)
def test_rows_that_cannot_be_cut(length: int, size: int, mend: str) -> None:
    with pytest.raises(ShunterError, match=mend):
        zigzag(length, size)


def test_one_rank_takes_any_length() -> None:
    assert zigzag(7, 1)[0].tolist() == list(range(7))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_a_ring_sends_what_is_seen_farther_on(size: int) -> None:
    length = 8 * size
    plain = Routes.plan(Sight(length), size)
    for owner in range(size):
        early, late = (plain.ways[chunk].stops for chunk in chunks(owner, size))
        assert early == tuple((owner - turn) % size for turn in range(1, size))
        assert late == tuple(range(owner))[::-1]
    # Documents that end with the chunks: nothing is sent.
    apart = torch.arange(length).expand(2, -1) // 4
    quiet = Routes.plan(Sight(length, apart), size)
    assert quiet.keys == []
    assert not any(quiet.grads)
    # A window of a chunk: only the holder of the next chunk hears of it.
    near = Routes.plan(Sight(length, window=3), size)
    holder = {chunk: rank for rank in range(size) for chunk in chunks(rank, size)}
    for chunk, way in near.ways.items():
        after = holder.get(chunk + 1, way.owner)
        assert way.stops == ((after,) if after != way.owner else ())
    # Every gradient comes home once.
    for routes in (plain, near):
        home = [
            hop.chunk for hops in routes.grads for hop in hops if hop.target == routes.ways[hop.chunk].owner
        ]
        assert sorted(home) == sorted(chunk for chunk, way in routes.ways.items() if way.stops)
