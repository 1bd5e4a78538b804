"""Programs a second in the sandbox, warm, against a cold start of Python that imports the same modules.

Both run the same 40 programs one after the other, without a second slot. The cold side has no isolation at
all, which would only cost it more. Output is compared before anything is timed.

`python -m bench.sandbox` keeps the result; `python -m bench.sandbox --tiny` is a trial and keeps nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from bench.measure import alternate, machine, rounded, save
from shunter.post.sandbox.box import Program, Sandbox
from shunter.post.sandbox.languages import LANGUAGES
from shunter.post.sandbox.zygote import PRELOADED

COUNT, GOAL = 40, 3.0
CODE = "import math, itertools, collections, re, json\nprint(sum(map(int, input().split())) + {n})"


def warm(box: Sandbox, count: int) -> list[str]:
    """Forked from the zygote, shut in."""
    programs = [Program(LANGUAGES["python"], CODE.replace("{n}", str(n)), ["1 2"], 5.0) for n in range(count)]
    return [cases[0].output for cases in box.run(programs)]


def cold(count: int) -> list[str]:
    """A Python each, which imports what the zygote has imported."""
    imports = "import " + ", ".join(PRELOADED.split()) + "\n"
    found = []
    for n in range(count):
        code = imports + CODE.replace("{n}", str(n))
        command = [sys.executable, "-I", "-S", "-c", code]
        found.append(subprocess.run(command, input="1 2", capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    tiny = "--tiny" in sys.argv
    count = 10 if tiny else COUNT
    with Sandbox(slots=1) as box:
        if warm(box, count) != cold(count):
            raise SystemExit("the two sides print different things")
        found = alternate(
            lambda: warm(box, count),
            lambda: cold(count),
            2 if tiny else 8,
            1,
            width=0.1,
            limit=0.0 if tiny else 60.0,
        )
    speed = count / statistics.median(found["a"])
    print(
        f"{speed:.0f} programs/s warm, {found['ratio_median']:.1f}x a cold start "
        f"[{found['ratio_low']:.1f}, {found['ratio_high']:.1f}]"
    )
    if not tiny:
        found |= {"a": rounded(found["a"]), "b": rounded(found["b"])}
        print(save("sandbox", {"goal": GOAL, "programs": count, **found, "machine": machine()}))


if __name__ == "__main__":
    main()
