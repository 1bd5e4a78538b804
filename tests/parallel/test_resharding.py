"""Weights between learning and writing, on gloo ranks: bytes, bits, and what the model then says.

These cannot show what NCCL or a GPU's memory would do: bytes are counted where tensors are handed over.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid, transition
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.sharding import holdings
from shunter.models.spec import DecoderSpec
from shunter.parallel.counted import counted
from shunter.parallel.decoder import drop_others
from shunter.parallel.mesh import Groups, Peers
from shunter.parallel.resharding import Resharder, is_even
from shunter.parallel.tensor import split_tensor
from tests.draws import some
from tests.models.small import redraw
from tests.parallel.pool import GROUPS, Pool

ITEM = 4  # bytes
LAYOUTS = [
    {"t": 4, "tg": 2},
    {"t": 4, "tg": 1},
    {"t": 2, "d": 2, "tg": 1},
    {"p": 2, "t": 2, "tg": 2},
    {"p": 2, "t": 2, "pg": 2},
    {"p": 2, "t": 2},
    {"p": 4, "pg": 2},
    {"p": 2, "d": 2, "pg": 2},
]
STYLES = ("hybridflow", "vanilla", "sharded")


def spec(**more: Any) -> DecoderSpec:
    values: dict[str, Any] = {
        "vocab_size": 64, "max_positions": 16, "dim": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4,
        "head_dim": 8, "ffn_dim": 48, "family": "qwen3", "qk_norm": True, **more,
    }  # fmt: skip
    return DecoderSpec(**values)


def whole(of: DecoderSpec) -> dict[str, torch.Tensor]:
    model = Decoder(of)
    redraw(model)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def change(rank: int, groups: Groups, argument: Any) -> dict[str, Any]:
    """There and back; what it cost, and whether every bit is right at both ends."""
    degrees, style, more = argument
    of, layout = spec(**more), Hybrid(**degrees, vanilla=style != "hybridflow")
    weights = whole(of)
    it = Resharder(of, layout, rank, GROUPS, style)
    it.fill(weights)
    before = {name: tensor.clone() for name, tensor in it.learning.items()}
    with counted() as count:
        writing = it.to_writing()
    bill = it.bill
    right = writing.keys() == it.target.keys()
    for name, tensor in writing.items():
        right &= torch.equal(tensor, part(weights[name], it.target[name]))
    logits = says(of, it, rank) if style == "hybridflow" else None
    alone = Decoder(of)
    alone.load_state_dict(weights, strict=False)
    tokens = torch.arange(12).view(2, 6) * 5 % of.vocab_size
    expected = alone.logits(alone(tokens)).detach()
    with counted() as back:
        learning = it.to_learning()
    right &= learning.keys() == before.keys()
    right &= all(torch.equal(learning[name], before[name]) for name in before)
    even = (it.even.received, it.even.peak, it.even.redundant)
    held = {name: piece.numel for name, piece in it.held(rank).items()}
    return {
        "right": right, "received": bill.received, "peak": bill.peak, "staging": bill.staging,
        "redundant": bill.redundant, "even": even, "sent": count.total(), "back": back.total(),
        "gap": None if logits is None else float((logits - expected).abs().max()),
        "held": held, "target": {name: piece.numel for name, piece in it.target.items()},
        "whole": {name: tensor.numel() for name, tensor in weights.items()},
    }  # fmt: skip


def part(tensor: torch.Tensor, piece: Any) -> torch.Tensor:
    for dim, ranges in enumerate(piece.ranges):
        tensor = torch.cat([tensor.narrow(dim, begin, end - begin) for begin, end in ranges], dim)
    return tensor


@torch.no_grad()
def says(of: DecoderSpec, it: Resharder, rank: int) -> torch.Tensor:
    """Logits by the parts to write with: stages one after the other, matrices over their tensor ranks."""
    layout, seat = it.layout, it.layout.seat(rank)
    for other in range(layout.size):  # all ranks make all groups
        GROUPS.get(layout.tensor_group(other))
        GROUPS.get(layout.pipeline_group(other))
    members = layout.tensor_group(rank)
    peers = Peers(GROUPS.get(members), members, members.index(rank))
    with torch.device("meta"):
        model = Decoder(of)
    drop_others(model, set(it.writing))
    for name, tensor in it.writing.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))
    grid = Grid(tp=layout.tg)
    held = holdings(of, grid, grid.coordinates(seat.tg), sequence=False)
    split_tensor(model, {name: held[name] for name in it.writing}, peers, sequence=False)
    tokens = torch.arange(12).view(2, 6) * 5 % of.vocab_size
    stages = layout.pipeline_group(rank)
    per_stage = of.num_layers // layout.pg
    hidden = model.embed(tokens) if seat.pg == 0 else torch.empty(2, 6, of.dim)
    if seat.pg:
        dist.recv(hidden, stages[seat.pg - 1], group=GROUPS.get(stages))
    positions = torch.arange(6).expand(2, 6)
    rope, _ = model.geometry(positions, None, hidden.dtype)
    for layer in model.layers[seat.pg * per_stage : (seat.pg + 1) * per_stage]:
        hidden = layer(hidden, rope, None, None, None)
    logits = torch.empty(2, 6, of.vocab_size)
    if seat.pg < layout.pg - 1:
        dist.send(hidden.contiguous(), stages[seat.pg + 1], group=GROUPS.get(stages))
    else:
        name = "embed.weight" if of.tied else "head.weight"
        mine = (model.norm(hidden) @ it.writing[name].t()).contiguous()
        parts = [torch.empty_like(mine) for _ in members]
        if peers.group is None:
            parts = [mine]
        else:
            dist.all_gather(parts, mine, group=peers.group)
        logits = torch.cat(parts, dim=-1)
    if layout.pg > 1:
        dist.broadcast(logits, stages[-1], group=GROUPS.get(stages))
    return logits


@some("degrees", LAYOUTS, ids=str)
def test_bytes_are_those_of_the_table_and_bits_are_the_same(pool: Pool, degrees: dict[str, int]) -> None:
    for style in STYLES:
        layout = Hybrid(**degrees, vanilla=style != "hybridflow")
        found = pool.run(change, 4, (degrees, style, {}))
        assert all(rank["right"] for rank in found)
        assert sum(rank["sent"] for rank in found) == sum(rank["received"] for rank in found)
        assert not any(rank["back"] for rank in found)
        for rank in found:
            held, whole_ = sum(rank["held"].values()), sum(rank["whole"].values())
            gathered = sum(rank["target"].values()) if style == "hybridflow" else whole_
            if style != "sharded":
                # Nothing is received that was there, and all that was not.
                assert rank["received"] == ITEM * (gathered - held)
                written = sum(rank["target"].values())
                beside = 0 if style == "hybridflow" else held
                assert rank["peak"] == ITEM * max(gathered, written + beside)
                assert rank["redundant"] == (0 if style == "hybridflow" else ITEM * held)
            weights = ITEM * sum(size for name, size in rank["whole"].items() if is_even(name))
            table = transition(style, layout, weights)
            if layout.pg * layout.tg == 1:  # the whole model is written with, and the table's M has no room
                table = table._replace(peak=table.peak + table.redundant)
            assert rank["even"] == table


@pytest.mark.parametrize("more", [{"tied": True}, {"num_kv_heads": 2, "qkv_bias": True, "qk_norm": False}])
def test_what_the_model_says_after_every_change(pool: Pool, more: dict[str, Any]) -> None:
    """Also with tied ends, and with fused products of unequal parts."""
    for degrees in ({"t": 2, "d": 2}, {"p": 2, "t": 2, "tg": 2}, {"p": 2, "t": 2, "pg": 2, "tg": 1}):
        for rank in pool.run(change, 4, (degrees, "hybridflow", more)):
            assert rank["right"]
            assert rank["gap"] < 1e-4


def test_layers_that_are_no_equal_stages_are_refused() -> None:
    with pytest.raises(ShunterError, match="4 layers are not in 3 equal stages"):
        Resharder(spec(), Hybrid(p=3), 0, GROUPS)
