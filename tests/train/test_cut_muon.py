"""Muon on matrices of which ranks hold parts: the updates are those of the whole matrices.

In float64, with torch's orthogonalisation in that dtype too (see layouts.orthogonal): what this cannot show
is how much its own rounding to bfloat16 may differ between layouts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.models.spec import DecoderSpec
from shunter.train.layout_parts import Plan
from shunter.train.layout_traffic import muon_owners
from shunter.train.optim import Optimizers
from tests.draws import some
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
    "zero, fsdp, ep": ("zero, fsdp, ep", {}),
    "zero, tp, ep": ("zero, tp, ep", {}),
}


@some("name", list(LAYOUTS), by=lambda name: iter(re.split(", | x ", name)))
def test_parts_learn_what_whole_matrices_learn(pool: Pool, name: str) -> None:
    layout, spec = LAYOUTS[name]
    case = saving.case(layout, "muon", **spec)
    if case.spec["experts"] is None:
        case.parallel.update(ep=1, etp=1)
    expected = layouts.alone(case)
    for found in pool.run(layouts.task, layouts.size(case), case, case.layout.grid):
        assert layouts.differs(found, expected) == []


@settings(max_examples=60)
@given(
    case=st.one_of(
        layouts.cases((4, 8), must=("dp", "fsdp", "ep")), layouts.cases((4, 8), must=("dp", "tp", "ep"))
    )
)
def test_ranks_that_share_a_matrix_name_the_same_owner(case: layouts.Case) -> None:
    """Without processes, so of many more layouts."""
    parallel = case.layout.model_copy(update={"zero": 1})
    plan = Plan.make(DecoderSpec(**case.spec), parallel, case.width, 64)
    owners: dict[tuple[str, tuple[int, ...]], set[int]] = defaultdict(set)
    for rank in range(plan.grid.size):
        held = plan.held(plan.grid.coordinates(rank))
        for name, (owner, peers) in muon_owners(plan, rank, held).items():
            assert owner in peers
            owners[name, peers].add(owner)
    assert all(len(each) == 1 for each in owners.values())


def test_muon_is_what_is_compared() -> None:
    """Else the equality says nothing of it."""
    case = saving.case("one", "muon")
    optimizers = Optimizers(layouts.model(case), layouts.config(case))
    matrices = [name for name, state in optimizers.state().items() if "momentum_buffer" in state]
    assert "layers.0.attention.qkv.weight" in matrices
    assert "layers.1.ffn.experts.down" in matrices
