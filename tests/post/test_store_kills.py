"""A stream of tasks that is killed at random moments, and goes on from what it kept.

What is not shown: a machine that loses power while it writes (the file is renamed, and not flushed here).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

STEPS, ROWS = 12, 6
# The weights of this training are the list of rows that they were learnt from.
CODE = """
import json, os, sys, time
from shunter.post.stream import Task, run
folder, mode, steps, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
kept = json.load(open(folder + "/kept")) if os.path.exists(folder + "/kept") else None
learnt = kept["learnt"] if kept else []

def note(what):
    with open(folder + "/written", "a") as file:
        file.write(json.dumps(what) + "\\n")

def rollout(step, number, version):
    time.sleep(0.004 + 0.003 * (number % 3))
    note([step, number])
    return {"answer": f"{step}.{number}"}

def reward(cells):
    time.sleep(0.003)
    return [{"reward": row["answer"]} for row in cells]

def update(step, cells):
    time.sleep(0.004)
    assert len({row["group"] for row in cells}) == 1 and all(row["reward"] == row["answer"] for row in cells)
    learnt.extend([row["step"], row["number"]] for row in cells)

def keep(state):
    with open(folder + "/new", "w") as file:
        json.dump({"learnt": learnt, "state": state}, file)
    os.replace(folder + "/new", folder + "/kept")

run(mode, steps, rows, rollout, [Task("reward", ["answer"], ["reward"], reward, 2)], update, workers=3,
    update_reads=["number", "answer", "reward"], update_batch=2, group=2, keep=keep,
    kept=kept["state"] if kept else None, timeout=20.0)
"""


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("delayed", 3),
        *(pytest.param(mode, 10, marks=pytest.mark.long) for mode in ("delayed", "queue", "sequential")),
    ],
)
def test_killed_at_random_each_row_is_learnt_from_once(mode: str, kills: int, tmp_path: Path) -> None:
    draw, again = random.Random(kills), 0
    command = [sys.executable, "-c", CODE, str(tmp_path), mode, str(STEPS), str(ROWS)]
    kept = tmp_path / "kept"
    for _ in range(kills):
        process = subprocess.Popen(command)
        there, end = kept.read_bytes() if kept.exists() else b"", time.monotonic() + 20
        while (kept.read_bytes() if kept.exists() else b"") == there and time.monotonic() < end:
            assert process.poll() in (None, 0)
            if process.poll() == 0:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.03))
        process.kill()
        process.wait()
        state = json.loads(kept.read_text())["state"]
        again += len(state["store"]["cells"])
        before = {(c["step"], c["number"]) for _, c in state["store"]["cells"]}
        mark = (tmp_path / "written").read_text().count("\n")
        if state["step"] < STEPS:
            assert {c["step"] for _, c in state["store"]["cells"]} <= {state["step"], state["step"] + 1}
        (tmp_path / "kept-rows").write_text(json.dumps([mark, sorted(before)]))
    subprocess.run(command, check=True, timeout=60)
    learnt = [tuple(row) for row in json.loads(kept.read_text())["learnt"]]
    assert Counter(learnt) == Counter((step, number) for step in range(STEPS) for number in range(ROWS))
    assert [step for step, _ in learnt] == sorted(step for step, _ in learnt)
    mark, before = json.loads((tmp_path / "kept-rows").read_text())
    lines = (tmp_path / "written").read_text().splitlines()[mark:]
    assert not {tuple(json.loads(line)) for line in lines} & {tuple(row) for row in before}
    if mode == "delayed":
        assert again > 0, "rows of the next step were in the store when it was killed"
