"""Layers, and embedding and head, with degrees of their own learn what one process learns: loss, each
gradient, its norm, the weights.

In float64, as in `test_layouts`. What this cannot show: faults of NCCL, and whether such a layout is faster.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout
from tests.draws import examples
from tests.parallel.pool import Pool
from tests.train.layouts import ALL, Case, apart
from tests.train.test_layouts import check

SPEC: dict[str, Any] = {
    "dim": 12, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "ffn_dim": 10,
    "vocab_size": 29, "max_positions": 64, "tied": True,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "per_token": 2, "ffn_dim": 6, "balance_loss": 0.05, "capacity": 1.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Two rows a micro-batch for four data ranks: some have none.
    "tensor and data": (
        {"tp": 4, "microbatches": 2, "zero": 1, "layers": [{"of": [1, 2], "dp": 4}]},
        {},
    ),
    "sharded between whole": (
        {"dp": 2, "tp": 2,
         "layers": [{"of": [0], "tp": 4}, {"of": [2], "fsdp": 4}, {"of": [3], "fsdp": 2, "dp": 2}]},
        {},
    ),
    "whole between sharded": (
        {"fsdp": 2, "cp": 2, "sequence": False,
         "layers": [{"of": [1], "dp": 2, "tp": 2}, {"of": [3], "cp": 4}]},
        {"tied": False, "qkv_bias": True},
    ),
    "in a pipeline": (
        {"pp": 2, "tp": 2, "schedule": "zb1p", "microbatches": 3, "recompute": [1],
         "layers": [{"of": [0, 3], "fsdp": 2}]},
        {},
    ),
    "vocabulary cut, layers sharded": ({"fsdp": 2, "microbatches": 2, "ends": {"tp": 2}}, {}),
    "vocabulary whole, layers cut": ({"tp": 2, "microbatches": 2, "ends": {"dp": 2}}, {"tied": False}),
    # Which four heads could not be.
    "a vocabulary in three parts": (
        {"dp": 3, "microbatches": 1, "sequence": False, "ends": {"tp": 3}},
        {},
    ),
    "vocabulary sharded, layers cut": (
        {"tp": 2, "dp": 2, "microbatches": 2, "zero": 1, "ends": {"fsdp": 2, "cp": 2}},
        {"tied": False},
    ),
    "both ends of a pipeline": (
        {"pp": 2, "fsdp": 2, "schedule": "zb1p", "microbatches": 3, "recompute": [1], "ends": {"tp": 2},
         "layers": [{"of": [0, 3], "tp": 2}]},
        {},
    ),
    # A layer has its experts fetched before its backward computes them again.
    "experts fetched and computed again": (
        {"fsdp": 2, "microbatches": 2, "recompute": "selective", "ends": {"tp": 2}},
        {"experts": EXPERTS, "qk_norm": True, "num_layers": 2},
    ),
    "experts": (
        {"tp": 2, "dp": 2, "ep": 4, "layers": [{"of": [1], "fsdp": 2, "cp": 2, "ep": 2, "etp": 2}]},
        {"experts": EXPERTS, "qk_norm": True},
    ),
}  # fmt: skip


def case(name: str, optimizer: str = "adamw") -> Case:
    written, changed = CASES[name]
    parallel = {"microbatches": 1, "schedule": "1f1b", **{axis: 1 for axis in ALL}, **written}
    return Case(
        spec={**SPEC, **changed},
        parallel=parallel,
        rows=max(
            6 if parallel["microbatches"] == 3 else 4,
            parallel["microbatches"] * parallel["dp"] * parallel["fsdp"],
        ),
        length=16,
        z_loss=0.01,
        ragged=True,
        seed=3,
        optimizer=optimizer,
        dropout=(0.1, 0.0),
    )


LONG = {"vocabulary sharded, layers cut", "whole between sharded"}  # the draws have many like them


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in CASES]
)
def test_they_learn_what_one_process_learns(pool: Pool, name: str) -> None:
    check(pool, case(name, "muon" if name in ("sharded between whole", "tensor and data") else "adamw"))


@settings(max_examples=examples(2, 6))
@given(case=apart((2, 4)))
def test_any_degrees_for_any_layers(pool: Pool, case: Case) -> None:
    check(pool, case)


@settings(max_examples=examples(2, 6))
@given(case=apart((2, 3, 4), ends=True))
def test_any_degrees_for_embedding_and_head(pool: Pool, case: Case) -> None:
    check(pool, case)


@pytest.mark.long
def test_a_hundred_of_embedding_and_head(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=100)
    @given(case=apart((2, 3, 4, 4), ends=True))
    def run(case: Case) -> None:
        check(pool, case)
        seen.update(case.features())
        seen.update(f"ends {axis}" for axis in ALL[1:5] if case.parallel["ends"].get(axis, 1) > 1)
        seen["all"] += 1

    run()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:16} {count}" for name, count in seen.most_common()))
    for axis in ALL[1:5]:
        assert seen[f"ends {axis}"] >= seen["all"] / 10, axis


@pytest.mark.long
def test_a_hundred_and_fifty_of_up_to_four_ranks(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=150)
    @given(case=apart((2, 4, 4)))
    def run(case: Case) -> None:
        check(pool, case)
        seen.update(case.features())
        for layers in case.parallel["layers"]:
            seen.update(f"own {axis}" for axis in ALL if layers.get(axis, 1) > 1)
        seen["all"] += 1

    run()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:16} {count}" for name, count in seen.most_common()))
    for axis in ALL[1:]:
        assert seen[f"own {axis}"] >= seen["all"] / 10, axis


def test_other_numbers_of_ranks_and_layers_named_twice_are_refused() -> None:
    with pytest.raises(ValidationError, match="over dp 1 x fsdp 1 x cp 1 x tp 2 ranks, but a stage has 4"):
        Parallel.model_validate({"dp": 4, "layers": [{"of": [0], "tp": 2}]})
    with pytest.raises(ValidationError, match="ends are laid out over dp 1 x fsdp 1 x cp 1 x tp 2 ranks"):
        Parallel.model_validate({"dp": 4, "ends": {"tp": 2}})
    with pytest.raises(ValidationError, match="layer 1 twice"):
        Parallel.model_validate({"dp": 2, "layers": [{"of": [1], "tp": 2}, {"of": [0, 1], "fsdp": 2}]})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"layers": [{"of": [4], "tp": 2}]}, "layer 4 of 4"),
        ({"layers": [{"of": [0], "cp": 2}]}, "2 x cp=2"),
        ({"dp": 3, "layers": [{"of": [0], "tp": 3}]}, "tp=3"),
        ({"pad_experts": True, "layers": [{"of": [0], "tp": 2}]}, "as many rows"),
        ({"pp": 2, "vocabulary": 1, "layers": [{"of": [0], "tp": 2}]}, "vocabulary"),
        ({"pp": 2, "vocabulary": 1, "ends": {"tp": 2}}, "vocabulary and ends"),
        ({"ends": {"cp": 2}}, "2 x cp=2"),
        ({"dp": 30, "sequence": False, "ends": {"tp": 30}}, "a vocabulary of 29"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changed: dict[str, Any], why: str) -> None:
    parallel = Parallel.model_validate({"dp": 2, **changed})
    spec = DecoderSpec(
        **{**SPEC, **({"experts": EXPERTS, "qk_norm": True} if "pad_experts" in changed else {})}
    )
    with pytest.raises(ShunterError, match=why):
        check_layout(spec, parallel, parallel.order(), 6)


def test_degrees_of_the_layout_itself_are_no_others() -> None:
    parallel = Parallel.model_validate({"tp": 2, "layers": [{"of": [0], "tp": 2}, {"of": [1], "dp": 2}]})
    assert list(parallel.own_grids()) == [1]
    assert Parallel.model_validate({"tp": 2, "ends": {"tp": 2}}).others == ()
