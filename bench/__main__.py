"""`make bench`: every measurement in this folder, one after another.

`bench.gpu` needs a GPU, so it is run by itself.

A measurement is a module that can be run by itself (`python -m bench.startup`), prints a table with the
baseline beside ours, and keeps its result in bench/results/ as JSON with machine, date and commit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = {"__main__", "__init__", "measure", "gpu"}  # what is shared, and what needs another machine


def main() -> int:
    """Run the measurements named on the command line, or all. Returns the number that failed."""
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in PARTS)
    chosen = sys.argv[1:] or known
    if unknown := [name for name in chosen if name not in known]:
        print(
            f"error: no such measurement: {', '.join(unknown)}. Known: {', '.join(known)}.", file=sys.stderr
        )
        return 2
    print(f"measurements: {', '.join(chosen)}", flush=True)
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=HERE.parent, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
