"""A process that has loaded torch and forks a child for each `shunter` command: starting is then free.

Run as `python -m tests.drills.zygote`. It reads one JSON request a line: `args` of the command line, `cwd`,
`environment`, `output` (a file for what is printed) and `watch`, what a hook does at the points:

{"record": FILE}                     append each passage to FILE, as [point, job, step]
{"fill": FOLDER, "point": , "job": , "leave": BYTES}
                                     at this point write FOLDER/ballast until that much is free on its disk

It answers with the child's exit code, -N for a signal N. The child runs the same `main` as the command.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from shunter.record import points

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Load what jobs load, then serve until the requests end. Nothing is computed here: a fork of a
    process in which torch has started threads would hang."""
    for room in ("recipe", "data", "models", "train", "generate", "evaluate", "report", "jobs", "launch"):
        for module in sorted((ROOT / "shunter" / room).rglob("[a-z]*.py")):
            if module.stem != "lm_eval":  # an extra
                importlib.import_module(".".join(module.relative_to(ROOT).with_suffix("").parts))
    for name in ("shunter.cli.run", "typer.main", "pyarrow.compute", "numpy.ctypeslib", "tokenizers"):
        importlib.import_module(name)
    print(json.dumps("ready"), flush=True)
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

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted = wanted
        self.job: str | None = None

    def __call__(self, point: str, facts: dict[str, Any]) -> None:
        self.job = facts.get("job", self.job)
        if "record" in self.wanted:
            with open(self.wanted["record"], "a", encoding="utf-8") as file:
                file.write(json.dumps([point, self.job, facts.get("step")]) + "\n")
        elif (point, self.job) == (self.wanted["point"], self.wanted.get("job")):
            fill(Path(self.wanted["fill"]), self.wanted.get("leave", 0))


def fill(folder: Path, leave: int = 0) -> None:
    """Leave only so many bytes of the folder's file system free (in whole blocks)."""
    with (folder / "ballast").open("ab") as ballast:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while os.write(ballast.fileno(), b"\0" * size) == size:
                    pass
            except OSError:
                continue
        ballast.truncate(ballast.tell() - leave)


if __name__ == "__main__":
    main()
