"""Dropout while a model learns: the same masks on every layout, and none when it is looked at.

Layouts drawn at random stand in test_layouts.py, bugs that are seen in tests/mutants/drops.py. Not shown:
dropout of attention's probabilities, and inside of experts: they are not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.jobs.sft import SftConfig
from shunter.models import dropout
from shunter.parallel.mesh import Groups, Peers
from shunter.recipe.identity import what
from shunter.record import points
from shunter.train.config import DropoutConfig, TrainConfig
from shunter.train.dropping import Dropping
from shunter.train.layout_check import check_dropout
from shunter.train.passes import OnePass
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.world import World
from tests.mutants.subjects import case, decoder
from tests.parallel.pool import GROUPS, Pool
from tests.train import corpora, layouts
from tests.train.layouts import CPU, Case

SHARES = (0.3, 0.2)


def watch(run: Any) -> list[tuple[tuple[int, int], Tensor]]:
    """(layer, operation) and mask of each dropout while something runs."""
    seen: list[tuple[tuple[int, int], Tensor]] = []
    real = dropout.kept

    def noted(keys: Tensor, share: float, layer: int, operation: int, *more: int) -> Tensor:
        mask = real(keys, share, layer, operation, *more)
        seen.append(((layer, operation), mask))
        return mask

    dropout.kept = noted
    try:
        run()
    finally:
        dropout.kept = real
    return seen


def masks(rank: int, groups: Groups, each: Case) -> Any:
    world = World.create(each.layout.grid, rank, CPU, GROUPS)
    passes = LaidOutPasses(layouts.model(each), each.layout, world, each.width)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        return split(split(ids, world.data.size)[world.data.index], each.layout.parts)

    return watch(lambda: layouts.gradients(each, passes, parts, each.width))


def alone(each: Case) -> dict[tuple[int, int], Tensor]:
    model = layouts.model(each)
    passes = OnePass(model, model, CPU, "fp32")
    return dict(watch(lambda: layouts.gradients(each, passes, lambda ids: [ids])))


INSIDE = (dropout.HEADS, dropout.HIDDEN)


@pytest.mark.parametrize("sequence", [True, False])
def test_ranks_drop_the_same_outside_and_others_inside(pool: Pool, sequence: bool) -> None:
    """arXiv 1909.08053, section 3: of replicated tokens the same, of features that are cut each its own."""
    each = case({"tp": 2, "sequence": sequence, "microbatches": 1}, decoder(), dropout=SHARES)
    whole = alone(each)
    first, second = (dict(found) for found in pool.run(masks, 2, each, each.layout.grid))
    assert first.keys() == second.keys() == whole.keys()
    for place, mask in whole.items():
        if place[1] in INSIDE:
            assert torch.equal(torch.cat([first[place], second[place]], 2), mask), "each its own features"
            assert not torch.equal(first[place][..., :6], second[place][..., :6])
        elif sequence:
            assert torch.equal(torch.cat([first[place], second[place]], 1), mask), "each its own tokens"
        else:
            assert torch.equal(first[place], mask)
            assert torch.equal(second[place], mask)


@pytest.mark.parametrize("recompute", ["full", True])
def test_recomputation_accumulation_and_layout_change_no_mask(pool: Pool, recompute: Any) -> None:
    layout = {"pp": 2, "microbatches": 3, "recompute": recompute}
    each = case(layout, decoder(num_layers=2), dropout=SHARES)
    whole, twice = alone(each), 0
    for found in pool.run(masks, 2, each, each.layout.grid):
        by_place: dict[tuple[int, int], list[Tensor]] = {}
        for place, mask in found:
            by_place.setdefault(place, []).append(mask)
        for place, made in by_place.items():
            once = [mask for mask in made if len(mask)]
            twice += len(once) == 6
            assert len(once) in (3, 6), "forward, and again where it is computed again"
            rows = {mask.numpy().tobytes() for mask in once}
            parts = {part.contiguous().numpy().tobytes() for part in whole[place].split([3, 2, 2])}
            assert rows == parts, place
    assert twice >= 4, "a layer has four masks"


def test_steps_and_rows_have_masks_of_their_own_and_evaluation_none(tmp_path: Path) -> None:
    config = DropoutConfig(residual=0.3)
    seeds = [Dropping.of(config, [2, 3], 7, step, 5, Peers.alone()).seeds for step in (0, 1)]
    flat = [seed for step in seeds for part in step for seed in part]
    assert len(set(flat)) == 10
    model = layouts.model(case({}, decoder()))
    passes = OnePass(model, model, CPU, "fp32")
    whole = layouts.batch(case({}, decoder()), 0)
    factors = torch.ones(whole.tokens.shape)
    assert watch(lambda: passes.loss([whole], [factors])) == []


def test_a_training_with_dropout_is_resumed_bit_by_bit_and_learns(tmp_path: Path) -> None:
    config = {"steps": 12, "dropout": {"residual": 0.1, "inner": 0.1}}
    whole = corpora.training(tmp_path / "whole", config)
    found = whole.run()
    plain = corpora.training(tmp_path / "plain", {"steps": 12}).run()
    assert found["loss"] != plain["loss"]

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == 7:
            raise KeyboardInterrupt

    points.install(kill)
    try:
        with pytest.raises(KeyboardInterrupt):
            corpora.training(tmp_path / "killed", config).run()
    finally:
        points.install(None)
    again = corpora.training(tmp_path / "killed", config)
    again.run()
    expected = whole.decoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.decoder.state_dict().items())


def test_what_cannot_be_is_refused_and_jobs_without_it_are_those_that_they_were() -> None:
    shape = layouts.model(
        case({}, decoder(qk_norm=True, experts={"num_experts": 2, "per_token": 1, "ffn_dim": 6}))
    ).spec
    check_dropout(DropoutConfig(residual=0.1), shape)
    with pytest.raises(ShunterError, match=r"inside of experts, which is not there\. Use residual alone"):
        check_dropout(DropoutConfig(inner=0.1), shape)
    base = {"kind": "sft", "model": "m", "tokens": "r"}
    assert "dropout" not in what(SftConfig(**base, train={"steps": 8}))["train"]
    told = what(SftConfig(**base, train={"steps": 8, "dropout": {"residual": 0.1}}))
    assert told["train"]["dropout"] == {"residual": 0.1, "inner": 0.0}
    assert TrainConfig(steps=8).dropout is None
