"""Layouts a second on the workers that tests share, and what these workers keep open.

Each layout is drawn as the property test draws it: a decoder of some thousand weights, made on all ranks, its
gradient, and three steps of an optimizer. The rate is of time with groups made as they come (`first`) and
once they are there (`again`); the goals are of the latter. Descriptors and threads of the fullest worker are
counted before and after the second round.

`python -m bench.pool` takes some minutes, `--tiny` tries the code. A result is kept where others left the
machine alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from bench.measure import Others, machine, save
from tests.parallel.pool import Pool
from tests.parallel.test_pool import opened
from tests.train import layouts
from tests.train.layouts import Case

GOALS = {4: 1.0, 8: 0.4}  # layouts a second, at least
COUNTS = {4: 60, 8: 40}
CALM = 0.1  # largest share of the machine that others may use while a kept result is measured


def through(pool: Pool, cases: list[Case]) -> float:
    """Layouts a second."""
    begin = time.perf_counter()
    for case in cases:
        pool.run(layouts.task, case.layout.grid.size, case, case.layout.grid)
    return len(cases) / (time.perf_counter() - begin)


def fullest(pool: Pool) -> dict[str, int]:
    every = pool.run(opened, pool.size)
    return {"descriptors": max(files for files, _ in every), "threads": max(count for _, count in every)}


def measure(ranks: int, count: int) -> dict[str, Any]:
    cases = layouts.drawn(count, (ranks,))
    pool = Pool(ranks)
    try:
        pool.run(opened, ranks)  # all have started
        first = through(pool, cases)
        before = fullest(pool)
        again = through(pool, cases)
        return {
            "layouts": len(cases), "goal": GOALS[ranks], "first_per_second": first,
            "again_per_second": again, "before": before, "after": fullest(pool),
        }  # fmt: skip
    finally:
        pool.close()


def main() -> int:
    """Measure; print, and keep what was measured on a machine left alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="few layouts, to try the code")
    tiny = parser.parse_args().tiny
    watch, found = Others(), {}
    for ranks, count in COUNTS.items():
        one = found[str(ranks)] = measure(ranks, 3 if tiny else count)
        print(
            f"{ranks} ranks: {one['again_per_second']:.2f} layouts/s ({one['first_per_second']:.2f} with "
            f"groups still to be made), goal at least {one['goal']}; descriptors "
            f"{one['before']['descriptors']} -> {one['after']['descriptors']}, threads "
            f"{one['before']['threads']} -> {one['after']['threads']}",
            flush=True,
        )
    others = watch.share()
    if tiny or others > CALM:
        print(f"Others used {others:.0%} of the machine: not kept.")
        return 0
    what = "layouts a second of the property test, on the shared workers"
    save("pool", {"what": what, "others": others, "ranks": found, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
