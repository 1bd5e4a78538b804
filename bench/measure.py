"""What every measurement needs: the machine, timing by turns, the kept result.

Two sides are timed in the same process, one after the other, the order turned round each time, so that
whatever else the machine does meets both alike.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
NAMED = ("numpy", "tokenizers", "transformers", "safetensors", "pyarrow")
RESAMPLES = 2000
WAIT = datetime.timedelta(seconds=300)  # for a rank that is silent


def machine() -> dict[str, Any]:
    """What a number depends on besides the code, and which code it was. Names no host and no path."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no", "--", "shunter", "bench/*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": _version("torch"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in NAMED}},
        "commit": commit.stdout.strip(),
        "changed_since": bool(changed.stdout.strip()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def alternate(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int,
    warmup: int,
    *,
    width: float | None = None,
    limit: float = 60.0,
) -> dict[str, Any]:
    """Seconds of `a` (ours) and `b` (the baseline) in at least `rounds` alternating rounds.

    The ratio is b's seconds by a's of the same round, so above 1 `a` is the faster; its median comes
    with a 95 % bootstrap interval. With `width`, rounds go on until the interval is no wider than
    that share of the median, or `limit` seconds have passed.

    cpu_ratio_median is the same of the process's CPU seconds (all threads): on a machine whose cores
    are shared it varies much less, but it does not see what waits, nor what runs side by side.
    """
    for _ in range(warmup):
        a()
        b()
    seconds: dict[str, list[float]] = {"a": [], "b": []}
    cpu: dict[str, list[float]] = {"a": [], "b": []}
    begin, watch = time.perf_counter(), Others()
    while True:
        turn = (("a", a), ("b", b)) if len(seconds["a"]) % 2 == 0 else (("b", b), ("a", a))
        for name, side in turn:
            start, used = time.perf_counter(), time.process_time()
            side()
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
        count = len(seconds["a"])
        if count < rounds or (width is not None and count % 4):
            continue
        middle, low, high = _ratio(seconds)
        if width is None or high - low <= width * middle or time.perf_counter() - begin > limit:
            return {
                **seconds,
                "ratio_median": middle,
                "ratio_low": low,
                "ratio_high": high,
                "cpu_ratio_median": _ratio(cpu)[0],
                "others": watch.share(),
            }


def on_ranks(ranks: int, worker: Callable[..., Any], *arguments: Any) -> Any:
    """What `worker(rank, *arguments)` returns on rank 0 of as many gloo processes of one thread; JSON values.

    worker, arguments: what can be pickled; this process wrote them.
    """
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, (ranks, folder, worker, arguments), nprocs=ranks)
        return json.loads(Path(folder, "answer.json").read_text(encoding="utf-8"))


def _work(rank: int, ranks: int, folder: str, worker: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    place = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks, timeout=WAIT)
    found = worker(rank, *arguments)
    if rank == 0:
        Path(folder, "answer.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


class Others:
    """How much of the machine other processes use; 0 where /proc does not tell."""

    def __init__(self) -> None:
        self._begin = self._now()

    def share(self) -> float:
        """Share of all cores since this was made, without this process and its ended children."""
        wall, busy, own = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        cores = os.cpu_count() or 1
        return round(max(0.0, (busy - own) / max(wall * cores, 1e-9)), 3)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        own = sum(os.times()[:4])
        try:
            ticks = [int(x) for x in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            return time.perf_counter(), float("nan"), own
        # user, nice, system, irq, softirq; not idle, not waiting, not a guest's (counted in user).
        busy = sum(ticks[:3]) + sum(ticks[5:7])
        return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own


def _ratio(seconds: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """How many times faster a is than b, round by round: median and interval."""
    return interval([other / ours for ours, other in zip(seconds["a"], seconds["b"], strict=True)])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval (the same resamples every time)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def save(name: str, result: dict[str, Any]) -> Path:
    """Keep a result as bench/results/<name>.json; the machine is added where it is not told."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({**result, "machine": result.get("machine") or machine()}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def rounded(seconds: Sequence[float]) -> list[float]:
    """For the file: five digits tell all that a clock does."""
    return [float(f"{value:.5g}") for value in seconds]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
