"""Ranks that waited longer for each other than they may, though none of them died.

That is no lost rank: one is slower than the timeout allows, or each waits for another thing, for ever.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shunter.launch.recur import CollectiveTimeout

# What gloo, NCCL and torch's stores say of a wait that was given up. Not all that names a timeout: that of a
# connection tells of a peer that is gone.
LATE = (
    "timed out waiting", "timeout waiting for key", "wait timeout", "collective operation timeout",
    "barrier timeout", "timed out in monitoredbarrier",
)  # fmt: skip
_SHOWN = 8  # ranks, and waits, that are told one by one
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')


def leave_word(folder: Path, rank: int) -> None:
    """In a rank: when it is told to end, it writes down where each of its threads is. By no code of Python,
    which does not run while it waits for a message."""
    with suppress(OSError):
        _word(folder, rank).unlink(missing_ok=True)
        faulthandler.register(signal.SIGTERM, _word(folder, rank).open("w"), all_threads=True, chain=True)


def late(error: BaseException) -> bool:
    """Whether it was raised because a wait took too long, in a lost rank's place."""
    return any(words in str(each).lower() for each in _causes(error) for words in LATE)


def what(error: BaseException) -> str:
    """For what the rank waited when this was raised: in words where the call has some (`waited`), else the
    line that called torch."""
    if said := getattr(error, "waited", None):
        return str(said)
    *_, deepest = _causes(error)
    frames = [each for each in traceback.extract_tb(deepest.__traceback__) if not _of_torch(each.filename)]
    if not frames:
        return "another rank"
    last = frames[-1]
    return f"`{(last.line or last.name)[:80]}` ({Path(last.filename).name}, line {last.lineno})"


def told(
    failures: Sequence[Mapping[str, Any]], ended: Sequence[tuple[int, int]], where: Path
) -> CollectiveTimeout | None:
    """The error to raise where no rank has failed by itself and one has waited too long; else None.

    failures: what ranks told (`late`, `waited`), each of another rank. ended: (rank, exit code, or minus the
    signal) of all that ended badly: who told nothing was ended by the launcher.
    """
    if not any(failure.get("late") for failure in failures):
        return None
    waits: dict[str, list[int]] = {}
    for failure in sorted(failures, key=lambda failure: int(failure["rank"])):
        waits.setdefault(str(failure["waited"]), []).append(int(failure["rank"]))
    known = {rank for ranks in waits.values() for rank in ranks}
    others = sorted(rank for rank, _ in ended if rank not in known)
    parts = [f"{_named(ranks)} waited: {each}" for each, ranks in list(waits.items())[:_SHOWN]]
    parts += [f"and {len(waits) - _SHOWN} more waits"] * (len(waits) > _SHOWN)
    for other in others:
        at = _left(where.parent, other)
        parts.append(f"rank {other} told nothing until it was ended" + (f", {at}" if at else ""))
    if others:
        mend = f"Look at what {_named(others)} did. Where it may take that long, raise the timeout"
    else:
        mend = "Each waits for another: where one of them may be that slow, raise the timeout"
    return CollectiveTimeout(
        "no rank died, but a wait took longer than how.parallel.timeout allows: " + "; ".join(parts),
        where=str(where),
        mend=f"{mend}; if it comes again at the same step, this is a deadlock, or the network: report it, "
        "with that file.",
    )


def _word(folder: Path, rank: int) -> Path:
    return folder / f"stack-{rank}.txt"


def _left(folder: Path, rank: int) -> str | None:
    """Where a rank's main thread was when it was told to end; None where it could not write it down."""
    try:
        *_, main = _word(folder, rank).read_text(encoding="utf-8").split("\n\n")  # the oldest comes last
    except OSError:
        return None
    for found in _FRAME.finditer(main):
        if not _of_torch(found["file"]):
            return f"in {found['name']} ({Path(found['file']).name}, line {found['line']})"
    return None


def _of_torch(file: str) -> bool:
    return f"{os.sep}torch{os.sep}" in file


def _causes(error: BaseException) -> Iterator[BaseException]:
    """It, and what it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _named(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:_SHOWN]))
    more = f" and {len(ranks) - _SHOWN} more" * (len(ranks) > _SHOWN)
    return f"rank{'s' * (len(ranks) > 1)} {shown}{more}"
