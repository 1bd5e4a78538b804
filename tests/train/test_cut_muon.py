"""Muon on matrices of which ranks hold parts: the updates are those of the whole matrices.

In float64, with torch's orthogonalisation in that dtype too (see layouts.orthogonal): what this cannot show
is how much its own rounding to bfloat16 may differ between layouts.
"""

from __future__ import annotations

from typing import Any

import pytest

from shunter.train.optim import Optimizers
from tests.parallel.pool import Pool
from tests.train import layouts
from tests.train.checkpoint import saving

DENSE = {"experts": None, "num_kv_heads": 2, "qk_norm": False}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tp": ("tp", DENSE),
    "tp, a head on both": ("tp", {**DENSE, "num_kv_heads": 1}),
    "fsdp": ("fsdp", DENSE),
    "tp x fsdp": ("fsdp x tp, ep", {}),
    "ep": ("ep", {}),
    "etp": ("etp", {}),
    "pp x fsdp": ("pp x fsdp", {}),
    "zero": ("zero", DENSE),
    "zero, tp": ("zero, tp", {}),
    "zero, fsdp": ("zero, fsdp", DENSE),
    "zero, ep": ("zero, ep", {}),
    "zero, pp": ("zero, pp", {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_learn_what_whole_matrices_learn(pool: Pool, name: str) -> None:
    layout, spec = LAYOUTS[name]
    case = saving.case(layout, "muon", **spec)
    if case.spec["experts"] is None:
        case.parallel.update(ep=1, etp=1)
    expected = layouts.alone(case)
    for found in pool.run(layouts.task, layouts.size(case), case, case.layout.grid):
        assert layouts.differs(found, expected) == []


def test_muon_is_what_is_compared() -> None:
    """Else the equality says nothing of it."""
    case = saving.case("one", "muon")
    optimizers = Optimizers(layouts.model(case), layouts.config(case))
    matrices = [name for name, state in optimizers.state().items() if "momentum_buffer" in state]
    assert "layers.0.attention.qkv.weight" in matrices
    assert "layers.1.ffn.experts.down" in matrices
