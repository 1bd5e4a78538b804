"""How fast a program is simulated: the command, and ours beside torch's dry run of the same actions.

Baseline: `torch.distributed.pipelining.schedules._simulate_comms_compute` on what torch's own lowering makes
of the same order, over growing sizes until it needs more than 30 s. It knows no costs: an action is a step of
its rank, a message's two ends are one each. Ours takes costs and links, and is timed with messages as
edges that take time (what `shunter simulate` does), with links that they queue for, and with each end of a
message as a node of its own, as torch has them. Both run without garbage collection, as the command does.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.pipelining.schedules import _Action, _add_send_recv, _simulate_comms_compute

from bench.measure import ROOT, Others, interval, rounded, save
from shunter.schedule.action import texts
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs, Links
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.simulate import simulate

ROUNDS, COMMAND_ROUNDS = 3, 7
LIMIT = 30.0  # seconds of torch's; larger cases are not tried
GROWING = (16, 32, 48, 64, 80, 96, 100, 104, 108, 112, 120, 128)  # ranks, with 8 times as many micro-batches
OTHERS = ("1f1b", "zb1p", "zbv")  # at 64 ranks and 512 micro-batches only
FLYING, QUEUEING = Links(latency=0.1), Links(latency=0.1, occupied=0.05)
COMMAND = ["simulate", "--schedule", "interleaved-1f1b", "--chunks", "2", "--ranks", "64",
           "--microbatches", "512", "--transfer", "0.1", "--json"]  # fmt: skip
GOALS = {"simulate": 0.3, "command": 1.5, "torch_by_ours": 50.0}
OURS = ("edges", "queues", "nodes")


def command() -> dict[str, Any]:
    """Seconds of the whole command, and what it says of simulating alone."""
    whole, inside = [], []
    for _ in range(COMMAND_ROUNDS + 1):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "shunter.cli.main", *COMMAND],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        whole.append(time.perf_counter() - begin)
        inside.append(json.loads(done.stdout)["seconds"])
    # The first round reads the files from disk.
    return {
        "command": statistics.median(whole[1:]),
        "simulate": statistics.median(inside[1:]),
        "seconds": {"command": rounded(whole[1:]), "simulate": rounded(inside[1:])},
    }


def torch_actions(order: Order) -> dict[int, list[_Action]]:
    """What torch's lowering makes of the order: sends and receives among what ranks compute."""
    computed = {
        rank: [_Action.from_str(text) for text in texts(actions)]
        for rank, actions in enumerate(order.actions)
    }
    return _add_send_recv(computed, lambda stage: order.placement[stage], order.stages)


def turns(sides: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each side, round by round, each round beginning with another one."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def case(name: str, ranks: int, microbatches: int) -> dict[str, Any]:
    """One line of the table."""
    order = schedule(name).build(ranks, microbatches)
    theirs, plain = torch_actions(order), assemble(order)
    lowered, costs = lower(plain), Costs.even(order.placement)
    actions = len(lowered.nodes)
    if actions != sum(map(len, theirs.values())):
        raise AssertionError("the two sides have other actions")
    watch = Others()
    seconds = turns(
        {
            "edges": lambda: simulate(plain, costs, FLYING),
            "queues": lambda: simulate(plain, costs, QUEUEING),
            "nodes": lambda: simulate(lowered, costs, FLYING),
            "torch": lambda: _simulate_comms_compute(
                theirs, lambda stage: order.placement[stage], order.stages
            ),
        }
    )
    row: dict[str, Any] = {"schedule": name, "ranks": ranks, "microbatches": microbatches, "actions": actions}
    for side in OURS:
        pairs = zip(seconds["torch"], seconds[side], strict=True)
        middle, low, high = interval([other / ours for other, ours in pairs])
        row[side] = {"torch_by_ours": middle, "interval": [low, high]}
    row["seconds"] = {side: rounded(values) for side, values in seconds.items()}
    row["others"] = watch.share()
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    print(
        f"{name:<18}{ranks:>5}{microbatches:>6}{actions:>10}{medians['torch']:>9.2f}"
        + "".join(f"{medians[side]:>9.3f}{row[side]['torch_by_ours']:>6.1f} x" for side in OURS),
        flush=True,
    )
    return row


def main() -> int:
    """Measure, print, keep. Returns 1 if a goal is missed."""
    gc.disable()
    alone = command()
    print(f"shunter simulate, 64 ranks, 512 micro-batches, 2 chunks: {alone['command']:.2f} s", end="")
    print(
        f" (goal {GOALS['command']}), of it simulating {alone['simulate']:.2f} s (goal {GOALS['simulate']})"
    )
    print(f"{'schedule':<18}{'p':>5}{'m':>6}{'actions':>10}{'torch s':>9}", end="")
    print("".join(f"{side + ' s':>9}{'ratio':>8}" for side in OURS))
    others = [case(name, 64, 512) for name in OTHERS]
    growing = []
    for ranks in GROWING:
        row = case("interleaved-1f1b", ranks, 8 * ranks)
        growing.append(row)
        if statistics.median(row["seconds"]["torch"]) > LIMIT:
            break
    within = [row for row in growing if statistics.median(row["seconds"]["torch"]) <= LIMIT]
    ratios = {side: within[-1][side]["torch_by_ours"] for side in OURS}
    reached = {
        "simulate": alone["simulate"] <= GOALS["simulate"],
        "command": alone["command"] <= GOALS["command"],
        "torch_by_ours": ratios["edges"] >= GOALS["torch_by_ours"],
    }
    save(
        "simulate",
        {
            "what": "seconds of simulating interleaved-1f1b with 2 chunks; torch's by ours on the largest "
            "case that torch's ends in time; messages as edges that take time, as edges that queue for "
            "links, and as nodes at both ends (as torch has them)",
            "limit_seconds": LIMIT,
            "goals": GOALS,
            "reached": reached,
            "torch_by_ours": ratios,
            "command": alone,
            "growing": growing,
            "other_schedules": others,
        },
    )
    for name, right in reached.items():
        print(f"goal {name}: {'reached' if right else 'missed'}")
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
