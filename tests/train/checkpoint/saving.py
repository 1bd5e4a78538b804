"""A decoder with experts under several layouts, and states of it whose every value is known."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shunter.layout.piece import Piece
from shunter.parallel.collect import cut
from shunter.parallel.mesh import Groups
from shunter.train.checkpoint.lifecycle import Checkpointer, flatten
from shunter.train.checkpoint.shared import SharedCheckpointer
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.parallel.pool import GROUPS
from tests.train import layouts
from tests.train.layouts import CPU, Case

EXPERTS = {
    "num_experts": 4,
    "per_token": 2,
    "ffn_dim": 6,
    "router": "sigmoid",
    "shared_ffn_dim": 6,
    "bias_update": 0.01,
    "dense_first": 1,
}
SPEC = {
    "dim": 8,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 1,  # on more than one rank where there are tensor ranks
    "head_dim": 4,
    "ffn_dim": 13,
    "vocab_size": 29,
    "max_positions": 64,
    "qkv_bias": False,
    "qk_norm": True,
    "tied": True,
    "experts": EXPERTS,
}
GRIDS: dict[str, dict[str, int]] = {
    "one": {},
    "pp": {"pp": 2},
    "dp": {"dp": 2},
    "fsdp": {"fsdp": 3},
    "cp": {"cp": 2},
    "tp": {"tp": 2},
    "ep": {"dp": 2, "ep": 2},
    "etp": {"tp": 2, "etp": 2},
    "pp x tp": {"pp": 2, "tp": 2},
    "fsdp x tp, ep": {"fsdp": 2, "tp": 2, "ep": 2},
    "pp x fsdp": {"pp": 2, "fsdp": 2},
    "cp x dp, ep x etp": {"dp": 2, "cp": 2, "ep": 2, "etp": 2},
    "zero": {"dp": 3, "zero": 1},
    "zero, tp": {"dp": 2, "tp": 2, "zero": 1},
    "zero, fsdp": {"dp": 2, "fsdp": 2, "zero": 1},
    "zero, ep": {"dp": 2, "cp": 2, "ep": 2, "zero": 1},
    "zero, pp": {"pp": 2, "dp": 2, "zero": 1},
    # Copies share the dense matrices' state, which other axes cut than those of the experts.
    "zero, fsdp, ep": {"dp": 2, "fsdp": 2, "ep": 4, "zero": 1},
    "zero, tp, ep": {"dp": 2, "tp": 2, "ep": 2, "etp": 2, "zero": 1},
}
# Each is saved once, and loaded under all of its row.
PAIRS = {
    "one": ("pp", "fsdp", "tp", "cp x dp, ep x etp", "zero, tp"),
    "pp": ("one", "tp", "fsdp"),
    "dp": ("fsdp", "pp x tp"),
    "fsdp": ("one", "dp", "tp", "pp x fsdp", "zero"),
    "cp": ("ep",),
    "tp": ("one", "fsdp", "etp"),
    "ep": ("one", "cp", "etp"),
    "etp": ("ep", "pp"),
    "pp x tp": ("fsdp x tp, ep",),
    "fsdp x tp, ep": ("one", "pp x fsdp", "cp x dp, ep x etp"),
    "pp x fsdp": ("tp",),
    "cp x dp, ep x etp": ("one", "pp x tp"),
    "zero": ("one", "zero, fsdp", "tp"),
    "zero, tp": ("zero", "pp x fsdp"),
    "zero, fsdp": ("dp", "zero, tp", "zero, ep"),
    "zero, ep": ("ep", "zero, pp"),
    "zero, pp": ("zero", "tp", "zero, tp, ep"),
    "zero, fsdp, ep": ("one", "zero, tp, ep"),
    "zero, tp, ep": ("zero, fsdp, ep",),
}


def case(name: str, optimizer: str = "adamw", **spec: Any) -> Case:
    """The model under the layout of that name. spec: other than SPEC's."""
    axes = {axis: GRIDS[name].get(axis, 1) for axis in layouts.ALL}
    return Case(
        spec={**SPEC, **spec},
        parallel={**axes, "schedule": "1f1b", "microbatches": 2, "zero": GRIDS[name].get("zero", 0)},
        rows=8,
        length=8,
        z_loss=0.01,
        ragged=True,
        seed=5,
        optimizer=optimizer,
    )


class Held:
    """A rank's part of the model with its optimizer, and the checkpointer for it."""

    def __init__(self, rank: int, case: Case, folder: Path, *, beside: bool = False) -> None:
        parallel = case.layout
        self.world = World.create(parallel.grid, rank, CPU, GROUPS)
        self.passes = LaidOutPasses(
            layouts.model(case), parallel, self.world, case.length, optimizer=case.optimizer
        )
        part = self.passes.part
        self.optimizers = Optimizers(part.decoder, layouts.config(case), part)
        self.checkpointer: Checkpointer = SharedCheckpointer(
            folder, 2, self.world, part.held, self.passes.elsewhere, beside=beside, kept=part.kept
        )

    @property
    def state(self) -> dict[str, Any]:
        model = {name: tensor.detach() for name, tensor in self.passes.part.state.items()}
        return {"model": model, "optimizer": self.optimizers.state()}

    def piece(self, name: str, tensor: Tensor) -> Piece:
        """Which part of the whole a tensor of the state is; a count is whole."""
        owner, _, inner = name.partition(".")
        held = self.passes.part.kept if owner == "optimizer" else self.passes.part.held
        found = held.get(inner) or held.get(inner.rpartition(".")[0])
        return Piece.full(()) if found is None or not tensor.ndim else found.piece


def value(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A whole tensor that its name decides."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def save(rank: int, groups: Groups, request: tuple[Case, Path]) -> None:
    """Write known values under a layout."""
    found = known(rank, request, beside=False)
    found.checkpointer.save(1, found.state, {"names": "known"})


def save_beside(rank: int, groups: Groups, request: tuple[Case, Path]) -> None:
    """The same, on another thread while the values change."""
    found = known(rank, request, beside=True)
    found.checkpointer.save_later(1, found.state, {"names": "known"})
    for tensor in flatten(found.state).values():
        tensor.zero_()
    found.checkpointer.wait()


def known(rank: int, request: tuple[Case, Path], *, beside: bool) -> Held:
    """A rank with values that their names decide."""
    found = Held(rank, *request, beside=beside)
    for name, tensor in flatten(found.state).items():
        piece = found.piece(name, tensor)
        whole = value(name, piece.shape, tensor.dtype)
        tensor.copy_(cut(whole, piece) if piece.shape else whole)
    return found


def load(rank: int, groups: Groups, request: tuple[Case, Path]) -> list[str]:
    """Read them under another: the names of tensors that are not what they were, to the bit."""
    found = Held(rank, replace(request[0], seed=6), request[1])
    assert found.checkpointer.latest() == 1
    state = found.state
    assert found.checkpointer.load(1, state)["names"] == "known"
    wrong = []
    for name, tensor in flatten(state).items():
        piece = found.piece(name, tensor)
        whole = value(name, piece.shape, tensor.dtype)
        if not torch.equal(tensor, cut(whole, piece) if piece.shape else whole):
            wrong.append(f"state {name}")
    return wrong


def load_alone(case: Case, folder: Path) -> list[str]:
    """The same in one process that knows nothing of layouts."""
    decoder = layouts.model(case)
    optimizers = Optimizers(decoder, layouts.config(case))
    state = {"model": decoder.state_dict(), "optimizer": optimizers.state()}
    Checkpointer(folder).load(1, state)
    return [
        f"state {name}"
        for name, tensor in flatten(state).items()
        if not torch.equal(tensor, value(name, tuple(tensor.shape), tensor.dtype))
    ]
