"""Any layout of any decoder learns what one process learns: loss, each gradient, its norm, the weights.

In float64, where a wrong sum cannot hide behind rounding. What this cannot show: faults of fused kernels in
float32 and bfloat16, of NCCL, of speed, and those that only many ranks or long rows bring out.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from shunter.models.decoder import Decoder
from shunter.models.init import draw, init_weights
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.draws import examples
from tests.parallel.pool import GROUPS, Pool
from tests.train import layouts
from tests.train.layouts import ALL, Case, cases


def check(pool: Pool, case: Case) -> None:
    grid = case.layout.grid
    expected = layouts.alone(case)
    answers = pool.run(layouts.task, grid.size, case, grid, *case.layout.others)
    wrong = {rank: found for rank, each in enumerate(answers) if (found := layouts.differs(each, expected))}
    assert not wrong


@settings(max_examples=examples(6, 60))
@given(case=cases())
def test_layouts_of_up_to_four_ranks(pool: Pool, case: Case) -> None:
    check(pool, case)


@pytest.mark.long
def test_two_hundred_layouts_of_up_to_eight_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    pool = Pool(8)
    seen: Counter[str] = Counter()

    @settings(max_examples=200)
    @given(case=cases((2, 3, 4, 6, 8, 8)))
    def run(case: Case) -> None:
        check(pool, case)
        found = case.features()
        seen.update(found)
        seen.update(f"{a} x {b}" for a, b in combinations(ALL, 2) if {a, b} <= found)
        seen["all"] += 1

    def more(must: tuple[str, str], count: int) -> None:
        """Pairs of axes that chance has seldom brought together."""

        @settings(max_examples=count)
        @given(case=cases((4, 6, 8), must=must))
        def also(case: Case) -> None:
            check(pool, case)
            seen[" x ".join(must)] += 1

        also()

    try:
        run()
        for a, b in combinations(ALL, 2):
            if (lacking := 10 - seen[f"{a} x {b}"]) > 0:
                more((a, b), lacking)
    finally:
        pool.close()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:16} {count}" for name, count in seen.most_common()))
    for axis in ALL:
        assert seen[axis] >= seen["all"] / 5, axis
    for a, b in combinations(ALL, 2):
        assert seen[f"{a} x {b}"] >= 10, (a, b)


def held_weights(rank: int, groups: Groups, case: Case) -> tuple[Any, list[str], list[str]]:
    """A decoder that was never whole: its weights, what was drawn here, and what is held here."""
    drawn: list[str] = []

    def fill(name: str, tensor: torch.Tensor) -> None:
        drawn.append(name)
        draw(name, tensor, 7)

    with torch.device("meta"):
        decoder = Decoder(DecoderSpec(**case.spec))
    world = World.create(case.layout.grid, rank, layouts.CPU, GROUPS)
    passes = LaidOutPasses(decoder, case.layout, world, case.length, fill)
    return passes.whole(passes.part.state), drawn, sorted(passes.part.held)


@settings(max_examples=6)
@given(case=cases())
def test_first_weights_are_those_of_one_process_and_no_rank_draws_others(pool: Pool, case: Case) -> None:
    whole = Decoder(DecoderSpec(**case.spec))
    init_weights(whole, 7)
    grid = case.layout.grid
    answers = pool.run(held_weights, grid.size, case, grid)
    found = answers[0][0]
    assert found.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    for _, drawn, held in answers:
        assert sorted(drawn) == held
