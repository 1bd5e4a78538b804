"""A model without values, of which each rank reads its part from a folder, is the model with values.

What this cannot show: the memory of a model that is really too big for one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.layout.piece import Piece
from shunter.parallel.generic.laid import lay_out
from shunter.parallel.generic.stored import reader, without_values
from shunter.parallel.mesh import Groups, Mesh
from tests.parallel import pool as pools
from tests.parallel.generic.models import Net, build, loss
from tests.parallel.generic.test_laid import _ids, _spec


def write(folder: Path, spec: dict[str, Any], prefix: str = "") -> None:
    """In two files, tied weights once."""
    named = {f"{prefix}{name}": p.detach() for name, p in build(spec).named_parameters()}
    names = sorted(named)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: named[name].contiguous() for name in part}, folder / f"model-{number}.safetensors")


def _read(rank: int, groups: Groups, given: Any) -> dict[str, Any]:
    folder, spec, grid = given
    ids = _ids(0)
    with without_values():
        model = Net(spec).double()
    assert all(p.is_meta for p in model.parameters())
    mesh = Mesh(grid, rank, pools.GROUPS)
    laid = lay_out(model, mesh, probe=lambda: loss(model, ids[:2]), fill=reader(Path(folder)))
    wanted = loss(build(spec), ids)
    with laid.gathered():
        got = loss(model, ids).detach()
    return {
        "gap": abs(float(got / wanted.detach()) - 1),
        "same": all(torch.equal(laid.whole(name), p) for name, p in build(spec).named_parameters()),
        "computed": set(laid.computed.values()),
        "tied": model.lm_head._parameters["weight"] is model.embed._parameters["weight"],
    }


@pytest.mark.parametrize("grid", [Grid(tp=2), Grid(fsdp=2)])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_each_rank_reads_its_part(pool: Any, tmp_path: Path, grid: Grid, prefix: str) -> None:
    spec = {**_spec(fused=True), "tied": "module"}
    write(tmp_path, spec, prefix)
    for told in pool.run(_read, 2, (str(tmp_path), spec, grid), grid):
        assert told["gap"] < 1e-9
        assert told["same"]
        assert told["tied"]
        assert grid.tp == 1 or "in a pair" in told["computed"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="has no safetensors file"):
        reader(tmp_path)
    save_file({"a.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    fill = reader(tmp_path)
    with pytest.raises(ShunterError, match=r"There is a\.weight"):
        fill("a.wieght", Piece.full((2, 3)), torch.zeros(2, 3))
    with pytest.raises(ShunterError, match=r"has shape \[3, 2\], and \[2, 3\] in the folder"):
        fill("a.weight", Piece.full((3, 2)), torch.zeros(3, 2))
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ShunterError, match="no safetensors file"):
        reader(tmp_path)


def test_buffers_keep_their_values() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("rates", torch.arange(3.0), persistent=False)

    with without_values():
        made = Rotary()
    assert made.weight.is_meta
    assert torch.equal(made.rates, torch.arange(3.0))  # type: ignore[arg-type]
    assert not nn.Linear(2, 2).weight.is_meta
