"""What it costs that idle worker threads sleep soon (GOMP_SPINCOUNT, which the command line sets).

GNU OpenMP reads it when it is loaded, so each value has processes of its own, which take turns. A process
trains the quickstart's model in bf16 and tells its median step. Each value is measured on an idle machine,
and then beside one process that keeps a core busy, which is where long spinning makes the step slow.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.measure import ROOT, Others, interval, rounded, save

VALUES = ("", "1000", "10000", "100000")  # the first leaves it to the library
ROUNDS, STEPS, WARMUP = 5, 12, 3
CROWDED_ROUNDS = 3
GOAL = 0.97
QUIET = 0.08  # share of the cores that others may use while a process measures; else it is done again
PATIENCE = float(os.environ.get("BENCH_PATIENCE", "240"))  # seconds after which a busy machine is given up


def child() -> None:
    """Print the median seconds of a step."""
    import torch

    from bench.train_step import Size, _spec, batch_of
    from shunter.models.decoder import Decoder
    from shunter.models.init import init_weights
    from shunter.train.config import TrainConfig
    from shunter.train.objective import CrossEntropy
    from shunter.train.optim import Optimizers
    from shunter.train.passes import OnePass
    from shunter.train.step import train_step

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    size = Size(_spec(4096, 256, 4, 672), rows=8, length=256)
    decoder = Decoder(size.spec)
    init_weights(decoder, 0)
    optimizers = Optimizers(decoder, TrainConfig(steps=1000))
    passes = OnePass(decoder, decoder, torch.device("cpu"), "bf16")
    batch, seconds = batch_of(size, "rows"), []
    for step in range(STEPS + WARMUP):
        begin = time.perf_counter()
        train_step(
            passes, optimizers, CrossEntropy(), [batch], step=step, rate=1e-3, clip=1.0,
        )  # fmt: skip
        seconds.append(time.perf_counter() - begin)
    print(statistics.median(seconds[WARMUP:]))


def median_step(value: str) -> float:
    """Seconds of a step in a process of its own, under this GOMP_SPINCOUNT (empty: the library's)."""
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "bench.spin", "child"],
        cwd=ROOT, check=True, capture_output=True, text=True,
        env={**plain, **({"GOMP_SPINCOUNT": value} if value else {})},
    )  # fmt: skip
    return float(done.stdout)


def crowded() -> dict[str, list[float]]:
    """Value -> seconds of a step, while another process wants a core all the time."""
    seconds: dict[str, list[float]] = {value: [] for value in VALUES}
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in range(CROWDED_ROUNDS):
            for value in VALUES:
                seconds[value].append(median_step(value))
    finally:
        hog.kill()
        hog.wait()
    return seconds


def main() -> int:
    """Measure, print, keep. Returns 1 if the value that the command line sets costs more than 3 %."""
    if sys.argv[1:] == ["child"]:
        child()
        return 0
    seconds: dict[str, list[float]] = {value: [] for value in VALUES}
    begin = time.perf_counter()
    while min(map(len, seconds.values())) < ROUNDS and time.perf_counter() - begin < PATIENCE:
        # The value measured least often comes next, so the values take turns.
        value = min(VALUES, key=lambda value: len(seconds[value]))
        watch = Others()
        time.sleep(0.3)
        if watch.share() > QUIET:
            continue
        watch = Others()
        step = median_step(value)
        if watch.share() <= QUIET:
            seconds[value].append(step)
    if min(map(len, seconds.values())) < ROUNDS:
        print("The machine was too busy to measure; the earlier result is kept.")
        return 0
    beside = crowded()
    found: dict[str, dict[str, Any]] = {}
    for value in VALUES[1:]:
        pairs = zip(seconds[""], seconds[value], strict=True)
        middle, low, high = interval([default / here for default, here in pairs])
        gain = statistics.median(beside[""]) / statistics.median(beside[value])
        found[value] = {"ratio": middle, "interval": [low, high], "crowded_ratio": gain}
        print(
            f"GOMP_SPINCOUNT={value:<9}{middle:7.3f} of the default's speed  {low:.3f}-{high:.3f}"
            f"   beside another process {gain:.2f}"
        )
    from shunter.cli.main import SPIN

    reached = found[SPIN]["ratio"] >= GOAL
    save(
        "spin",
        {
            "what": "speed of a training step by GOMP_SPINCOUNT; the library's default is 1",
            "others_at_most": QUIET,
            "chosen": SPIN,
            "goal": GOAL,
            "reached": reached,
            "values": found,
            "seconds": {value or "default": rounded(values) for value, values in seconds.items()},
            "crowded_seconds": {value or "default": rounded(values) for value, values in beside.items()},
        },
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
