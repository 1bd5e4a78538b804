"""Attention of one new token a row to its blocks of a cache, where they lie: a Triton kernel.

A copy of the blocks, which a CPU's caches hold, goes to a GPU's memory and back, three times as much as is
read here. After PagedAttention (arXiv 2309.06180, section 5.1) and the split of long texts over the device of
Flash-Decoding (arXiv 2311.01282, section 2). Needs triton, which torch for CUDA brings along.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 128  # bytes of one number of keys, of all tokens that a program reads together
QUERIES = 16  # rows of the smallest product of matrices
BUSY = 512  # programs that fill a device


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, q_row, store, table, table_row, positions, out, top, total, scale, window,
    SIZE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, parts = tl.num_programs(0), tl.num_programs(2)
    last = tl.load(positions + row)
    first = tl.maximum(last + 1 - window, 0)
    each = tl.cdiv(last + 1 - first, parts)
    begin = first + part * each
    end = tl.minimum(begin + each, last + 1)
    query, wide = tl.arange(0, QUERIES), tl.arange(0, WIDE)
    inside = (query[:, None] < GROUP) & (wide[None, :] < WIDTH)
    of_head = (head * GROUP + query)[:, None] * WIDTH + wide[None, :]
    asked = tl.load(q + row * q_row + of_head, mask=inside, other=0.0)
    most = tl.full([QUERIES], -float("inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, WIDE], tl.float32)
    for at in range(begin, end, TOKENS):
        token = at + tl.arange(0, TOKENS)
        real = token < end
        block = tl.load(table + row * table_row + token // SIZE, mask=real, other=0)
        slot = block * SIZE + token % SIZE
        place = slot[:, None] * (2 * HEADS * WIDTH) + head * WIDTH + wide[None, :]
        there = real[:, None] & (wide[None, :] < WIDTH)
        keys = tl.load(store + place, mask=there, other=0.0)
        values = tl.load(store + place + HEADS * WIDTH, mask=there, other=0.0)
        scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(real[None, :], scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shares, kept = tl.exp(scores - higher[:, None]), tl.exp(most - higher)
        weight = weight * kept + tl.sum(shares, 1)
        found = found * kept[:, None] + tl.dot(shares.to(values.dtype), values, input_precision="ieee")
        most = higher
    to = part * rows + row
    if parts == 1:
        found = found / weight[:, None]
    tl.store(out + to * (HEADS * GROUP * WIDTH) + of_head, found.to(out.dtype.element_ty), mask=inside)
    if parts > 1:
        of_part = to * (HEADS * GROUP) + head * GROUP + query
        tl.store(top + of_part, most, mask=query < GROUP)
        tl.store(total + of_part, weight, mask=query < GROUP)


def attend(
    heads: Tensor,
    layer: Tensor,
    table: Tensor,
    positions: Tensor,
    num_heads: int,
    size: int,
    window: int | None = None,
) -> Tensor:
    """Attention [N, H d] of queries, the first H of heads [N, H + 2 K, d], one token of each row.

    layer [tokens, 2 K d]: keys, then values of each token of the cache, those of the new ones included, in
    the dtype of heads. table [N, blocks] int64: a row's blocks, of `size` tokens. positions [N] int64: of the
    new tokens; a row sees all before, or `window` tokens with itself.
    """
    rows, count, width = heads.shape
    keys = (count - num_heads) // 2
    group = num_heads // keys
    longest = table.shape[1] * size if window is None else min(window, table.shape[1] * size)
    at_once = AT_ONCE // heads.element_size()
    parts = max(1, min(-(-BUSY // (rows * keys)), longest // (2 * at_once)))
    alone = parts == 1
    out = heads.new_empty(parts, rows, num_heads, width, dtype=heads.dtype if alone else torch.float32)
    top = heads.new_empty(0 if alone else parts, rows, num_heads, dtype=torch.float32)
    total = torch.empty_like(top)
    with torch.cuda.device_of(heads):  # where triton launches
        _attend[rows, keys, parts](
            heads, heads.stride(0), layer, table, table.stride(0), positions, out, top, total, width**-0.5,
            longest + 1 if window is None else window, SIZE=size, HEADS=keys, GROUP=group, WIDTH=width,
            QUERIES=max(QUERIES, triton.next_power_of_2(group)), WIDE=max(16, triton.next_power_of_2(width)),
            TOKENS=at_once, num_warps=4, num_stages=2,
        )  # fmt: skip
    if alone:
        return out.view(rows, -1)
    shares = (top - top.amax(0)).exp_()
    joined = (out * shares[..., None]).sum(0) / (total * shares).sum(0)[..., None]
    return joined.to(heads.dtype).view(rows, -1)
