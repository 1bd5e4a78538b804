"""A rank that dies where it died before: to run the same command again would only lead there once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError

FILE = "died.json"  # in the folder of a job's ranks: of the attempt before
NOTICED = "shunter: a rank has ended"  # the launcher's own line, after what ranks said until then
LONGEST = 300  # characters of a line that are shown


class RanksEnded(ShunterError):
    """The ranks of a job ended, and none of them told why by an error of its own."""


class RankDied(RanksEnded):
    """A rank ended without a word."""


class CollectiveTimeout(RanksEnded):
    """Ranks waited for each other for too long, and all of them lived."""


def told_again(error: RanksEnded, folder: Path, step: int | None) -> RanksEnded:
    """The error to raise: as it is the first time, and with what is known where it comes a second time.

    step: the last one that was finished; None before any was.
    """
    before = _read(folder / FILE)
    times = 1 + (int(before["times"]) if before is not None and before["step"] == step else 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"step": step, "what": error.what, "times": times}), "utf-8")
    if times == 1:
        return error
    after = "before its first step" if step is None else f"after step {step}"
    said = last_words(Path(error.where)) if error.where else None
    what = f"{error.what}; it was the {_nth(times)} time {after}"
    what += f"; the last that it said: {said}" if said else ""
    return type(error)(
        what,
        where=error.where,
        mend="The same command will most likely end there again: look at the cause first, in that file.",
    )


def forget(folder: Path) -> None:
    """After an attempt that went well."""
    (folder / FILE).unlink(missing_ok=True)


def last_words(output: Path) -> str | None:
    """The last line that ranks wrote before the launcher noticed an end; None where there is none."""
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    noticed = next((number for number, line in enumerate(lines) if line == NOTICED), len(lines))
    said = [line.strip() for line in lines[:noticed] if line.strip()]
    return said[-1][:LONGEST] if said else None


def _nth(times: int) -> str:
    return {2: "second", 3: "third"}.get(times, f"{times}th")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found if {"step", "times"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
