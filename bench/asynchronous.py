"""`rl` with answers written meanwhile, by weights a step old, beside `rl` that takes turns: samples a second.

The job as people run it, with a small model (0.9M parameters) on the CPU: 16 prompts of 8 answers a step, of
at most 40 tokens, with a divergence from the reference in the loss. Three ways to have two cores:
turns    one process, which writes, then learns, on two threads
queue    another process writes, and answers are graded as they come; writing waits for every update
delayed  and goes on meanwhile with weights that are a step old
One process has all cores; two share them, and who computes has those of who waits (`how.threads: 0`). As
`turns` may be faster with one thread, both are tried first, by turns, and the faster one is the baseline.
Rates are of the steps after the first `FIRST`, by the event log's clock, so that the beginning of a process
is in none; whole seconds are kept too.

Answers are drawn, so no two ways write or learn the same: each round has another seed, and the mean reward
of the last tenth of steps is told for both. `python -m bench.asynchronous` keeps the result, `--tiny` is a
trial. Others compare other ways instead, and keep that:
--ranks    two processes of a layout (dp: 2), which share the answers to write and learn together, with turns
--cores    queue and delayed with the same on cores that are fixed, half of them for each process
--at-once  the same with 8 and with 32 answers side by side, and with all 128
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.grpo import GROUP, PROMPTS, make, practise
from bench.measure import alternate, interval, machine, rounded, save

GOALS = {"queue over turns": 1.3, "delayed over queue": 1.1}  # of the paper's card
PAIRS = (("queue", "turns"), ("delayed", "queue"), ("delayed", "turns"))
TRIALS = 3  # of each number of threads
NEW = 40  # tokens of an answer at most
FIRST = 5  # steps until all is warm
HALF = max(1, len(os.sched_getaffinity(0)) // 2)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "turns": {"staleness": 0, "writer": "here"},
    "queue": {"staleness": 0, "writer": "process"},
    "delayed": {"staleness": 1, "writer": "process"},
    "ranks": {"staleness": 0, "writer": "here", "parallel": {"dp": 2}},
    "queue, fixed": {"staleness": 0, "writer": "process", "threads": HALF},
    "delayed, fixed": {"staleness": 1, "writer": "process", "threads": HALF},
    "queue, 8": {"staleness": 0, "writer": "process", "at_once": 8},
    "queue, 32": {"staleness": 0, "writer": "process", "at_once": 32},
    "delayed, 8": {"staleness": 1, "writer": "process", "at_once": 8},
    "delayed, 32": {"staleness": 1, "writer": "process", "at_once": 32},
}
ASKED = {  # option -> name of what is kept, pairs
    "--ranks": ("rl_ranks", (("ranks", "turns"),)),
    "--cores": ("rl_cores", (("queue", "queue, fixed"), ("delayed", "delayed, fixed"))),
    "--at-once": (
        "rl_at_once",
        (
            ("queue, 8", "queue"),
            ("queue, 32", "queue"),
            ("delayed, 8", "delayed"),
            ("delayed, 32", "delayed"),
        ),
    ),
}


def train(
    folder: Path, steps: int, way: str, threads: int = 0, seed: int = 0, new: int = NEW
) -> dict[str, float]:
    """The job; samples a second, and what it tells of ages and waiting, after the first steps."""
    asked = WAYS[way]
    how = {"log_every": 1, "threads": threads} | {n: x for n, x in asked.items() if n != "staleness"}
    train = {"steps": steps, "lr": 5e-4}
    told = practise(
        folder, new, how, policy={"kl": 0.001}, train=train, staleness=asked["staleness"], seed=seed
    )
    lines = [line for line in told if line["event"] == "metrics"]
    seconds = lines[-1]["t"] - lines[FIRST - 1]["t"]
    rows = [line["values"] for line in lines[FIRST:]]
    last = [line["values"]["rl/reward"] for line in lines[-max(1, steps // 10) :]]
    return {
        "samples_per_second": len(rows) * GROUP * PROMPTS / seconds,
        "staleness": statistics.mean(row["rl/staleness"] for row in rows),
        "max_staleness": max(row.get("rl/max_staleness", 0.0) for row in rows),
        "waited_share": sum(row.get("rl/waited", 0.0) for row in rows) / seconds,
        "reward_first": lines[0]["values"]["rl/reward"],
        "reward_last": statistics.mean(last),
        "tokens": statistics.mean(row["rl/length"] for row in rows),
    }


def compare(
    folder: Path, steps: int, rounds: int, limit: float, a: str, b: str, threads: int, new: int
) -> dict[str, Any]:
    """Two ways by turns. threads: of `turns`."""
    told: dict[str, list[dict[str, float]]] = {a: [], b: []}

    def side(way: str) -> None:
        seed = len(told[way])  # the same in both ways of a round
        told[way].append(train(folder, steps, way, threads if way == "turns" else 0, seed, new))

    found = alternate(lambda: side(a), lambda: side(b), rounds, 0, width=0.1, limit=limit)
    rates = {way: [one["samples_per_second"] for one in each] for way, each in told.items()}
    middle, low, high = interval([x / y for x, y in zip(rates[a], rates[b], strict=True)])
    rewards = {way: [one["reward_last"] for one in each] for way, each in told.items()}
    further = interval([x - y for x, y in zip(rewards[a], rewards[b], strict=True)])
    print(
        f"{a}: {statistics.median(rates[a]):.0f} samples/s, {middle:.2f}x {b} [{low:.2f}, {high:.2f}]; "
        f"age {statistics.mean(one['staleness'] for one in told[a]):.2f} updates, at most "
        f"{max(one['max_staleness'] for one in told[a]):g}; learning waited "
        f"{100 * statistics.mean(one['waited_share'] for one in told[a]):.0f} % of the time; "
        f"last reward {statistics.mean(rewards[a]):.3f}, {further[0]:+.3f} "
        f"[{further[1]:+.3f}, {further[2]:+.3f}]",
        flush=True,
    )
    return {
        "ratio": middle, "ratio_low": low, "ratio_high": high,
        "rates": {way: rounded(each) for way, each in rates.items()}, "whole": {
            a: rounded(found["a"]), b: rounded(found["b"]), "ratio_median": found["ratio_median"],
        }, "others": found["others"], "rewards": rewards, "further": further,
        "told": {way: {name: statistics.mean(one[name] for one in each) for name in each[0]}
                 for way, each in told.items()},
    }  # fmt: skip


def best(folder: Path, steps: int, trials: int, new: int) -> tuple[dict[int, list[float]], int]:
    """Rates of `turns` by its number of threads, and the number that is fastest."""
    tried: dict[int, list[float]] = {1: [], len(os.sched_getaffinity(0)): []}
    for trial in range(trials):
        for threads in list(tried)[:: 1 if trial % 2 == 0 else -1]:
            told = train(folder, steps, "turns", threads, trial, new)
            tried[threads].append(told["samples_per_second"])
    threads = max(tried, key=lambda count: statistics.median(tried[count]))
    print(f"turns: {tried} samples/s by threads; the baseline has {threads}", flush=True)
    return tried, threads


def main() -> None:
    tiny = "--tiny" in sys.argv
    other = next((option for option in ASKED if option in sys.argv), None)
    name, asked = ("asynchronous", PAIRS) if other is None else ASKED[other]
    steps, rounds, limit, new = (FIRST + 2, 1, 0.0, 4) if tiny else (30, 4, 150.0, NEW)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        tried: dict[int, list[float]] = {}
        threads = 0
        if any("turns" in pair for pair in asked):
            tried, threads = best(folder, steps, 1 if tiny else TRIALS, new)
        cases = {f"{a} over {b}": compare(folder, steps, rounds, limit, a, b, threads, new) for a, b in asked}
    if not tiny:
        goals = GOALS if other is None else {}
        result = {"goals": goals, "steps": steps, "threads": threads, "tried": tried, "cases": cases,
                  "machine": machine()}  # fmt: skip
        print(save(name, result))


if __name__ == "__main__":
    main()
