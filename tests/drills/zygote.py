"""A `shunter` command with a hook at the points: `python -m tests.drills.zygote ARGS WATCH`, both in JSON.

ARGS: of the command line. WATCH: null, or what the hook does:

{"record": FILE}                     append each passage to FILE, as [point, job, step]
{"fill": FOLDER, "point": , "job": , "leave": BYTES}
                                     at this point write FOLDER/ballast until that much is free on its disk
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from shunter.record import points


def main(args: list[str], watch: dict[str, Any] | None) -> int:
    """The command's exit code."""
    from shunter.cli.main import main as shunter

    if watch:
        points.install(_Watch(watch))
    return shunter(args)


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
    sys.exit(main(*map(json.loads, sys.argv[1:])))
