"""Seconds of the planner's searches: Llama 2 7B on 8 devices, 1T weights on 3072, Galvatron's own profile.

    python -m bench.plan [--rounds N] [--tiny]

The baseline of the last is Hetu-Galvatron's own search (cea12ff, models/gpt/search_dist.py with its
search_dist.yaml, SEQ_LENGTH 2048, time mode static; triton and flash-attention stubbed, since it cannot be
imported without them). It is run by hand, in an environment of its own: 148 s on two quiet cores, 169 CPU
seconds on two busy ones; so it is quoted here, not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from bench.measure import save
from shunter.cluster import files
from shunter.config import yaml
from shunter.papers.galvatron import BATCH, ORIGINAL, PROFILE, SECONDS
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.galvatron import search as galvatron
from shunter.plan.galvatron_profile import Profile
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.search import search

GOALS = {"llama-2-7b on 8": 1.0, "gpt-1t on 3072": 10.0, "Galvatron's profile": SECONDS / 50}


def question(model: str, cluster: str, batch: int) -> Question:
    fabric = Fabric.of(files.find(cluster))
    return Question(preset(model), fabric, batch, 2048, PRACTICES["shunter"], Coefficients())


def profiled() -> None:
    profile = Profile.of(yaml.load(PROFILE).data, hidden=4096, layers=32, sequence=2048, world=8)
    plan = galvatron(profile, BATCH, 38 * 1024).plan
    assert plan is not None
    assert abs(plan.seconds / ORIGINAL - 1) < 1e-9


SIDES: dict[str, Callable[[], object]] = {
    "llama-2-7b on 8": lambda: search(question("llama-2-7b", "8xa100-80", 64)),
    "Galvatron's profile": profiled,
    "gpt-1t on 3072": lambda: search(question("gpt-1t", "384x8xa100-80", 3072)),
}


def one(name: str) -> tuple[float, float]:
    """Seconds and CPU seconds of a search in a process of its own: in one that has searched before, programs
    and their simulations are known already."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.plan", "--one", name], capture_output=True, text=True, check=True
    )
    wall, cpu = json.loads(done.stdout)
    return float(wall), float(cpu)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="once, without the largest; nothing is kept")
    parser.add_argument("--one", choices=list(SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        begin, used = time.perf_counter(), time.process_time()
        SIDES[given.one]()
        print(json.dumps([time.perf_counter() - begin, time.process_time() - used]))
        return 0
    rows = {}
    reached = True
    for name in [each for each in SIDES if not given.tiny or "3072" not in each]:
        wall, cpu = [], []
        for _ in range(1 if given.tiny else given.rounds):
            seconds, worked = one(name)
            wall.append(seconds)
            cpu.append(worked)
        rows[name] = {"seconds": wall, "cpu_seconds": cpu, "goal": GOALS[name]}
        slow, used = statistics.median(wall), statistics.median(cpu)
        reached &= used <= GOALS[name]
        print(f"{name:<22}{slow:8.2f} s{used:8.2f} CPU s, goal {GOALS[name]:g}")
    if not given.tiny:
        save("plan", {"what": "seconds of a search, alone in its process", "searches": rows})
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
