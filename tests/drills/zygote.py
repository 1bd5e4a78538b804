"""A process that has loaded torch and forks a child for each `shunter` command: starting is then free.

Run as `python -m tests.drills.zygote`. It reads one JSON request a line: `args` of the command line, `cwd`,
`environment`, `output` (a file for what is printed) and `watch`, what a hook does at the points:

{"record": FILE}                     append each passage to FILE, as [point, job, step]
{"fill": FOLDER, "point": , "job": } at this point write FOLDER/ballast until its disk is full

It answers with the child's exit code, -N for a signal N. The child runs the same `main` as the command.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from shunter.record import points


def main() -> None:
    """Load what jobs load, then serve until the requests end. Nothing is computed here: a fork of a
    process in which torch has started threads would hang."""
    import pyarrow.parquet
    import tokenizers
    import torch

    import shunter.jobs.evaluate
    import shunter.jobs.pretrain
    import shunter.jobs.report
    import shunter.models.hf
    import shunter.train.loop

    loaded = (pyarrow.parquet, tokenizers, torch, shunter)
    print(json.dumps(f"ready with {len(loaded)}"), flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_child(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _child(request: dict[str, Any]) -> int:
    with open(request["output"], "wb", buffering=0) as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    if watch := request.get("watch"):
        points.install(_Watch(watch))
    try:
        from shunter.cli.main import main as shunter

        return shunter(request["args"])
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class _Watch:
    """The hook of `watch`."""

    def __init__(self, wanted: dict[str, str]) -> None:
        self.wanted = wanted
        self.job: str | None = None

    def __call__(self, point: str, facts: dict[str, Any]) -> None:
        self.job = facts.get("job", self.job)
        if "record" in self.wanted:
            with open(self.wanted["record"], "a", encoding="utf-8") as file:
                file.write(json.dumps([point, self.job, facts.get("step")]) + "\n")
        elif (point, self.job) == (self.wanted["point"], self.wanted["job"]):
            fill(Path(self.wanted["fill"]))


def fill(folder: Path) -> None:
    """Leave not one byte of the folder's file system free."""
    ballast = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (1 << 20, 1 << 12, 1):
        try:
            while os.write(ballast, b"\0" * size) == size:
                pass
        except OSError:
            continue
    os.close(ballast)


if __name__ == "__main__":
    main()
