"""The quickstart as a person runs it: time and memory of each job, and what its models are worth.

It runs in a store of its own, from text to report, as one process. Seconds are the clock's; on a machine
that does other work they say little, and the CPU seconds beside them say more: both cores of two busy all
the time, half of them is the least that the clock can show.

`python -m bench.quickstart` measures recipes/quickstart.yaml; overrides may follow
(`jobs.chat.train.steps=50`), and another recipe's path before them. Then nothing is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import ROOT, Others, save
from shunter.recipe.store import Store

RECIPE = ROOT / "recipes" / "quickstart.yaml"
CORES = 2
GOALS = {
    "seconds": 360.0,  # on two cores that do nothing else
    "peak_bytes": 3e9,
    "bits_per_byte": 1.75,
    "of_xz": 0.9,
}


def jobs_of(store: Store, run: dict[str, Any]) -> dict[str, Any]:
    """Seconds, CPU seconds, peak memory and headline numbers of each job of a finished run."""
    found = {}
    for job in run["jobs"]:
        manifest = store.get(job["artefact"]).manifest
        last = manifest.attempts[-1]
        found[job["name"]] = {
            **{key: last[key] for key in ("seconds", "cpu_seconds", "peak_bytes")},
            "metrics": manifest.metrics,
        }
    return found


def scores_of(store: Store, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores of each model by task, and the comparisons, from the job `scores`."""
    data = json.loads((store.get(name).path / "scores.json").read_text(encoding="utf-8"))
    kept = ("metric", "value", "low", "high", "unit", "n", "baseline")
    models = {
        model: {task: {key: score.get(key) for key in kept} for task, score in found["tasks"].items()}
        for model, found in data["models"].items()
    }
    return models, data["comparisons"]


def verdicts(result: dict[str, Any]) -> dict[str, bool | None]:
    """What the quickstart promises, each kept or not; None where this run cannot tell."""
    base, chat = result["scores"]["base"], result["scores"]["chat"]
    xz = base["heldout"]["baseline"]["value"]
    gain = next(each for each in result["comparisons"] if each["task"] == "arithmetic")
    learnt = next(each for each in result["comparisons"] if each["task"] == "even or odd")
    busy = result["others"] > 0.05 or result["cores"] != CORES
    peak = max(job["peak_bytes"] for job in result["jobs"].values())
    return {
        "seconds": None if busy else result["seconds"] <= GOALS["seconds"],
        "cpu_seconds": result["cpu_seconds"] <= CORES * GOALS["seconds"],
        "memory": peak <= GOALS["peak_bytes"],
        "base": base["heldout"]["value"] <= min(GOALS["bits_per_byte"], GOALS["of_xz"] * xz),
        "chat_below_xz": chat["heldout"]["high"] < xz,
        "arithmetic": gain["low"] > 0,
        "practice": learnt["low"] > 0,
    }


def main() -> int:
    """Run, print, keep. Returns 1 when the run fails; a goal that is missed stands in the table."""
    words = sys.argv[1:]
    recipe = Path(words.pop(0)) if words and words[0].endswith((".yaml", ".yml")) else RECIPE
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "shunter.cli.main", "run", str(recipe), *words]
        watch, begin = Others(), time.perf_counter()
        done = subprocess.run(
            [*command, "--store", folder, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=False
        )
        seconds, others = time.perf_counter() - begin, watch.share()
        if done.returncode:
            return 1
        store = Store(folder)
        jobs = jobs_of(store, json.loads(done.stdout))
        models, comparisons = scores_of(store, "scores")
        practised, gains = scores_of(store, "practice")
        environment = store.get("scores").manifest.attempts[-1]["environment"]
    result: dict[str, Any] = {
        "what": "the whole quickstart in one process, in a store of its own",
        "how": "one run; seconds of the clock and of the CPU (all threads), peak memory a job",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(job["cpu_seconds"] for job in jobs.values()), 1),
        "others": others,
        "cores": environment["cores"],
        "goals": GOALS,
        "jobs": jobs,
        "scores": models,
        "comparisons": [*comparisons, *gains],
        "practice": practised,
    }
    result["kept"] = verdicts(result)
    print(f"{'job':<12}{'s':>8}{'CPU s':>8}{'MB':>7}")
    for name, job in jobs.items():
        print(f"{name:<12}{job['seconds']:>8.1f}{job['cpu_seconds']:>8.1f}{job['peak_bytes'] / 1e6:>7.0f}")
    print(f"{'all':<12}{result['seconds']:>8.1f}{result['cpu_seconds']:>8.1f}   others used {others:.0%}")
    for name, kept in result["kept"].items():
        print(f"{name:<16}{ {True: 'kept', False: 'MISSED', None: 'not told: the machine was busy'}[kept] }")
    if recipe == RECIPE and not words:
        save("quickstart", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
