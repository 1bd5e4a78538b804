"""How much faster two cores curate than one: the same job, bound to one core and to two, by turns.

A chain with all that finds duplicates runs in a process of its own with its workers (`how.workers`: 1 and 2)
on a made-up corpus, until the corpus is published. Seconds are of the whole command. CPU seconds, of it and
its workers, say what working side by side costs.

    python -m bench.curate_scaling            # 200 MB, three rounds, keeps the result
    python -m bench.curate_scaling 4          # MB, one round, to try it; keeps nothing
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.curate_memory import RECIPE, write
from bench.measure import ROOT, alternate, machine, save

MEGABYTES, ROUNDS = 200.0, 3


def curated(folder: Path, cores: set[int], used: list[float]) -> Callable[[], None]:
    """The job on some cores, each time in a store of its own; its CPU seconds go to `used`."""
    recipe = folder / f"recipe{len(cores)}.yaml"
    recipe.write_text(
        RECIPE.replace("WORKERS", str(len(cores))).replace("UNIT", "paragraph"), encoding="utf-8"
    )
    numbers = itertools.count()

    def work() -> None:
        store = folder / f"store{len(cores)}-{next(numbers)}"
        command = [sys.executable, "-m", "shunter.cli.main", "run", recipe.name, "--store", str(store)]
        bound, ticks = os.sched_getaffinity(0), dict[int, int]()
        os.sched_setaffinity(0, cores)  # children inherit it
        try:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        finally:
            os.sched_setaffinity(0, bound)
        while process.poll() is None:
            ticks.update(spent(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(process.returncode)
        used.append(sum(ticks.values()) / os.sysconf("SC_CLK_TCK"))
        subprocess.run(["rm", "-r", str(store)], check=True)

    return work


def spent(root: int) -> dict[int, int]:
    """Ticks that a process and each of those below it have used. Workers are children of a server that nobody
    waits for, so that the system adds them to nobody's; what one uses after the last look is not seen."""
    found: dict[int, int] = {}
    todo = [root]
    while todo:
        number = todo.pop()
        try:
            told = Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            for task in Path(f"/proc/{number}/task").iterdir():
                todo += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue
        found[number] = int(told[11]) + int(told[12])
    return found


def main() -> int:
    """Measure, print, keep. Returns 0; without two cores it is skipped."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("there is one core. Skipped.")
        return 0
    size = float(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES
    used: dict[str, list[float]] = {"two": [], "one": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        documents, characters = write(folder / "web", size * 1e6, 0)
        timed = alternate(
            curated(folder, set(cores[:2]), used["two"]),
            curated(folder, set(cores[:1]), used["one"]),
            1 if len(sys.argv) > 1 else ROUNDS,
            0,
        )
    rate = {
        name: characters / 1e6 / statistics.median(timed[side]) for name, side in (("two", "a"), ("one", "b"))
    }
    cpu = {name: statistics.median(seconds) for name, seconds in used.items()}
    result: dict[str, Any] = {
        "what": "a curate job on one core and on two: MB/s of text of the whole command",
        "text_mb": characters / 1e6,
        "documents": documents,
        "mb_per_second": rate,
        "cpu_seconds": cpu,
        "times_faster": timed["ratio_median"],
        "interval": [timed["ratio_low"], timed["ratio_high"]],
        "others": timed["others"],
    }
    print(
        f"{characters / 1e6:.0f} MB: one core {rate['one']:.2f} MB/s, two {rate['two']:.2f} MB/s, "
        f"{timed['ratio_median']:.2f} times; CPU seconds {cpu['one']:.1f} and {cpu['two']:.1f}"
    )
    if len(sys.argv) == 1:
        save("curate_scaling", {**result, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
