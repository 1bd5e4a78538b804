"""How long a person waits for `shunter --help` and for a dry run of the quickstart.

The baseline is `python -c "import torch"` in the same run, alternating: what a command that imports torch
cannot go below. Promises: 0.2 s and 0.5 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from bench.measure import ROOT, rounded, save

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
    save(
        "startup",
        {
            "what": "seconds until the command ends, median",
            "unit": "s",
            "rounds": ROUNDS,
            "baseline": {"import torch": medians["import torch"]},
            "ours": {name: medians[name] for name in PROMISES},
            "promises": PROMISES,
            "all": {name: rounded(values[1:]) for name, values in seconds.items()},
        },
    )
    return int(any(medians[name] > promise for name, promise in PROMISES.items()))


if __name__ == "__main__":
    sys.exit(main())
