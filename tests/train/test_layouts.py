"""Any layout of any decoder learns what one process learns: loss, each gradient, its norm, the weights.

In float64, where a wrong sum cannot hide behind rounding. What this cannot show: faults of fused kernels in
float32 and bfloat16, of NCCL, of speed, and those that only many ranks or long rows bring out.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings

from tests.parallel.pool import Pool
from tests.train import layouts
from tests.train.layouts import AXES, Case, cases


def check(pool: Pool, case: Case) -> None:
    grid = case.layout.grid
    expected = layouts.alone(case)
    answers = pool.run(layouts.task, grid.size, case, grid)
    wrong = {rank: found for rank, each in enumerate(answers) if (found := layouts.differs(each, expected))}
    assert not wrong


@settings(max_examples=30)
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
        seen.update(f"{a} x {b}" for a, b in combinations(AXES, 2) if {a, b} <= found)
        seen["all"] += 1

    try:
        run()
    finally:
        pool.close()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:16} {count}" for name, count in seen.most_common()))
    for axis in AXES:
        assert seen[axis] >= seen["all"] / 5, axis
    for a, b in combinations(AXES, 2):
        assert seen[f"{a} x {b}"] >= 10 * seen["all"] / 200, (a, b)
