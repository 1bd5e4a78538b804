"""How long a person waits for `shunter --help` and for a dry run of the quickstart.

The baseline is `python -c "import torch"` in the same run, alternating: what a command that imports torch
cannot go below. Promises: 0.2 s and 0.5 s.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 9
SHUNTER = [sys.executable, "-m", "shunter.cli.main"]
PROMISES = {"help": 0.2, "dry-run": 0.5}


def main() -> int:
    """Measure, print, keep. Returns 1 if a promise is broken."""
    with tempfile.TemporaryDirectory() as store:
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "help": [*SHUNTER, "--help"],
            "dry-run": [*SHUNTER, "run", "recipes/quickstart.yaml", "--dry-run", "--store", store],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS + 1):
            for name, command in commands.items():
                begin = time.perf_counter()
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - begin)
    # The first round reads the files from disk.
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, value in medians.items():
        promise = f"  promise {PROMISES[name]:.1f} s" if name in PROMISES else "  baseline"
        print(f"{name:<14}{value:7.3f} s{promise}")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "what": "seconds until the command ends, median",
        "unit": "s",
        "rounds": ROUNDS,
        "baseline": {"import torch": medians["import torch"]},
        "ours": {name: medians[name] for name in PROMISES},
        "promises": PROMISES,
        "all": {name: values[1:] for name, values in seconds.items()},
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
    }
    target = ROOT / "bench" / "results" / "startup.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(medians[name] > promise for name, promise in PROMISES.items()))


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
