"""A laid-out model that comes together to be written with, on gloo ranks: bytes, bits, and what has memory.

Bytes are held against the table of arXiv 2409.19256, and against what torch is given to send. These cannot
show what NCCL or a GPU's allocator would do; that a model still learns afterwards is seen in
tests/post/test_laid_out_rl.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shunter.layout.generation import Hybrid, transition
from shunter.layout.piece import Piece
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.counted import counted
from shunter.parallel.mesh import Groups, Peers
from shunter.parallel.resharding import is_even
from shunter.parallel.together import Together, without_memory
from shunter.train.config import Parallel
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.models.small import redraw
from tests.parallel.pool import GROUPS, Pool

CPU = torch.device("cpu")
ITEM = 4  # bytes
# Of four ranks, and the degrees of the table that are as many: rows of shards count as parts.
LAYOUTS: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"tp": 4}, {"t": 4}),
    ({"tp": 2, "dp": 2}, {"t": 2, "d": 2}),
    ({"pp": 2, "tp": 2}, {"p": 2, "t": 2}),
    ({"pp": 4}, {"p": 4}),
    ({"pp": 2, "dp": 2}, {"p": 2, "d": 2}),
    ({"fsdp": 4}, {"t": 4}),
    ({"fsdp": 2, "dp": 2}, {"t": 2, "d": 2}),
    ({"pp": 2, "fsdp": 2}, {"p": 2, "t": 2}),
    ({"fsdp": 2, "cp": 2}, {"t": 4}),
    ({"dp": 4, "zero": 1}, {"d": 4}),
]
EXPERTS = {
    "num_experts": 4, "per_token": 2, "ffn_dim": 8, "router": "sigmoid", "bias_update": 0.01,
    "shared_ffn_dim": 8, "dense_first": 1,
}  # fmt: skip
UNEVEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tp": 4}, {"num_kv_heads": 2, "ffn_dim": 17, "vocab_size": 61}),  # parts that overlap, unequal ones
    ({"fsdp": 4}, {"dim": 12, "ffn_dim": 9, "vocab_size": 61}),  # shards with padding, empty ones
    ({"pp": 2, "tp": 2}, {"num_layers": 3, "tied": True}),
    ({"pp": 2, "dp": 2, "ep": 2}, {"experts": EXPERTS}),
]


def spec(**more: Any) -> DecoderSpec:
    values: dict[str, Any] = {
        "vocab_size": 64, "max_positions": 16, "dim": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4,
        "head_dim": 8, "ffn_dim": 48, "family": "qwen3", "qk_norm": True, **more,
    }  # fmt: skip
    return DecoderSpec(**values)


def model(of: DecoderSpec) -> Decoder:
    made = Decoder(of)
    redraw(made)
    return made


def memory(tensors: dict[str, Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def change(rank: int, groups: Groups, argument: Any) -> dict[str, Any]:
    """Together and back, twice; what it cost, whether every bit is right, and what has memory."""
    degrees, more, at_once = argument
    parallel, of = Parallel(**degrees, microbatches=2), spec(**more)
    world = World.create(parallel.grid, rank, CPU, GROUPS)
    expected = {name: tensor.clone() for name, tensor in model(of).state_dict().items()}
    passes = LaidOutPasses(model(of), parallel, world, 16)
    state, whole = passes.part.state, Decoder(of).state_dict()
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    held = memory(state)
    it = passes.together(whole)
    if at_once:
        mine = {name: passes.part.held[name].piece for name in state}
        copies = [parallel.grid.coordinates(other)["dp"] for other in range(world.size)]
        it = Together(state, mine, whole, world.mesh.everyone, CPU, copies, at_once=at_once)
    found: dict[str, Any] = {"right": memory(whole) == 0}
    for _ in range(2):
        with counted() as count, it.there():
            found["right"] &= all(tensor.equal(expected[name]) for name, tensor in whole.items())
            found["there"] = memory(whole), memory(state)
        found["right"] &= memory(whole) == 0 and memory(state) == held
        found["right"] &= all(state[name].detach().equal(before[name]) for name in before)
    even = sum(
        ITEM * way.numel
        for name, ways in it.ways.items()
        for way in ways
        if is_even(name) and way.taker == rank
    )
    return found | {
        "bill": it.bill,
        "even": even,
        "sent": count.total(),
        "own": ITEM * sum(tensor.numel() for tensor in before.values()),
        "whole": ITEM * sum(tensor.numel() for tensor in expected.values()),
        "even_whole": ITEM * sum(tensor.numel() for name, tensor in expected.items() if is_even(name)),
    }


def checked(pool: Pool, degrees: dict[str, Any], more: dict[str, Any], at_once: int) -> list[dict[str, Any]]:
    grid = Parallel(**degrees).grid
    found = pool.run(change, grid.size, (degrees, more, at_once), grid)
    for rank in found:
        assert rank["right"]
        assert rank["there"] == (rank["whole"], 0)
        assert rank["bill"].redundant == 0
        assert rank["bill"].peak == rank["whole"]
    assert sum(rank["sent"] for rank in found) == sum(rank["bill"].received for rank in found)
    return found


@pytest.mark.parametrize(
    ("degrees", "table"),
    [pytest.param(*each, marks=pytest.mark.long if n > 5 else ()) for n, each in enumerate(LAYOUTS)],
    ids=str,
)
def test_bytes_are_those_of_the_table(pool: Pool, degrees: dict[str, Any], table: dict[str, int]) -> None:
    """Received, held at most, and held twice."""
    for rank in checked(pool, degrees, {}, 1):
        assert rank["bill"].received == rank["whole"] - rank["own"]
        expected = transition("hybridflow", Hybrid(**table), rank["even_whole"])
        assert (rank["even"], rank["even_whole"], rank["bill"].redundant) == expected


@pytest.mark.parametrize(("degrees", "more"), UNEVEN, ids=["heads", "shards", "tied", "experts"])
def test_uneven_parts_come_together_too(pool: Pool, degrees: dict[str, Any], more: dict[str, Any]) -> None:
    for rank in checked(pool, degrees, more, 0):
        assert rank["bill"].received == rank["whole"] - rank["own"]


def test_what_is_held_elsewhere_keeps_its_memory() -> None:
    """Tensors that share memory, of which one could not go without the other."""
    whole = {name: torch.empty(4, 2) for name in ("a", "b")}
    both = torch.arange(16.0).view(2, 4, 2)
    parts = {"a": both[0], "b": both[1]}
    one = _alone(parts, whole)
    with one.there():
        assert whole["a"].equal(both[0])
        assert whole["b"].equal(both[1])
        assert one.bill.redundant == both.nbytes
    assert both.equal(torch.arange(16.0).view(2, 4, 2))


def test_what_numpy_looks_at_keeps_its_memory() -> None:
    part, whole = torch.arange(8.0).view(4, 2), torch.empty(4, 2)
    seen = part.numpy()
    one = _alone({"a": part}, {"a": whole})
    with one.there():
        assert whole.equal(part)
        assert one.bill.redundant == seen.nbytes
    assert seen[3, 1] == 7


def test_padding_behind_a_part_is_zeros_again() -> None:
    """As `fully_shard` left it, whatever has had the memory meanwhile."""
    padded = torch.zeros(64)
    part, whole = padded[:48].fill_(1.0), torch.empty(48)
    with _alone({"a": part}, {"a": whole}).there():
        torch.full((64,), torch.nan)  # most likely in the memory that was given back
    assert padded.tolist() == [1.0] * 48 + [0.0] * 16


def test_an_error_in_between_leaves_the_parts() -> None:
    whole, part = {"a": torch.empty(4, 2)}, torch.arange(8.0).view(4, 2)
    with pytest.raises(KeyError), _alone({"a": part}, whole).there():
        raise KeyError
    assert part.equal(torch.arange(8.0).view(4, 2))
    assert not whole["a"].untyped_storage().nbytes()


def test_parts_that_are_not_wanted_are_named() -> None:
    part = {"a": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match="a is not wanted"):
        _alone(part, {})
    with pytest.raises(ValueError, match=r"a is a torch.float32 of .*, and a torch.float64 of .* is wanted"):
        _alone(part, {"a": torch.empty(4, 2, dtype=torch.float64)})
    with pytest.raises(ValueError, match="b: no rank has"):
        _alone(part, {"a": torch.empty(4, 2), "b": torch.empty(2)})


def _alone(parts: dict[str, Tensor], whole: dict[str, Tensor]) -> Together:
    pieces = {name: Piece.full(tensor.shape) for name, tensor in parts.items()}
    return Together(parts, pieces, whole, Peers.alone(), CPU, [0])


def test_memory_that_was_given_back_can_come_again() -> None:
    tensor = torch.ones(3)
    assert without_memory(tensor) is tensor
    assert not tensor.untyped_storage().nbytes()
