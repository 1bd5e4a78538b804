"""Costs and caps as a person writes them: a JSON file of times, and numbers separated by commas."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.schedule.action import FORWARD, INPUT, WEIGHT
from shunter.schedule.costs import Costs
from shunter.schedule.lower import MESSAGES

BYTES = "bytes"
KEYS = {"forward": FORWARD, "input_grad": INPUT, "weight_grad": WEIGHT}


def read_costs(path: Path, placement: Sequence[int]) -> Costs:
    """Costs of the stages of a placement, from a file such as

        {"forward": [1.0, 1.2, 1.1, 1.9], "input_grad": 1.0, "weight_grad": [0.8, 0.8, 0.8, 1.4]}

    One number holds for every rank. A list has a time for each rank, split evenly over its stages, or a time
    for each stage. Raises ShunterError for a file that is not so.
    """
    where, found = str(path), _read(path)
    seconds: dict[tuple[str, int], float] = {}
    for key, op in KEYS.items():
        if key not in found:
            raise ShunterError(f"{key} is missing", where=where, mend=f"Give all of {', '.join(KEYS)}.")
        times = _times(found[key], placement, f"{where}: {key}")
        seconds.update({(op, stage): time for stage, time in enumerate(times)})
    return Costs(seconds)


def read_sizes(path: Path) -> dict[str, float]:
    """Bytes of messages by payload, from the same file: `{"bytes": {"activation": 1e6, "gradient": 1e6}}`, or
    one number for both. Empty where it tells none. Raises ShunterError for anything else."""
    found = _read(path).get(BYTES, {})
    sizes: dict[str, Any] = found if isinstance(found, dict) else dict.fromkeys(MESSAGES, found)
    for payload, size in sizes.items():
        _number(size, f"{path}: {BYTES}.{payload}", "number of bytes")
    if sizes and (lacking := [payload for payload in MESSAGES if payload not in sizes]):
        raise ShunterError(
            f"{lacking[0]} has no bytes", where=f"{path}: {BYTES}", mend=f"Give {' and '.join(MESSAGES)}."
        )
    return {payload: float(size) for payload, size in sizes.items()}


def finite(times: Mapping[str, float | None]) -> None:
    """Raise ShunterError unless each of the named options that is given is a number from 0 on."""
    for name, value in times.items():
        if value is not None and not 0 <= value < math.inf:
            raise ShunterError(f"{name} is {value}", mend="Give a number from 0 on.")


def _read(path: Path) -> dict[str, Any]:
    where = str(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ShunterError(f"the costs cannot be read: {reason}", where=where, mend="Name a file.") from None
    except json.JSONDecodeError as error:
        raise ShunterError(
            f"the costs are no JSON: {error.msg}", where=f"{where}:{error.lineno}", mend="Mend the line."
        ) from None
    if not isinstance(found, dict):
        raise ShunterError("the costs are no JSON object", where=where, mend=f"Give {', '.join(KEYS)}.")
    for key in found:
        if key not in KEYS and key != BYTES:
            guess = nearest(key, [*KEYS, BYTES])
            raise ShunterError(
                f"there is no cost {key!r}",
                where=where,
                mend=f"Did you mean {guess}?" if guess else f"Known are {', '.join([*KEYS, BYTES])}.",
            )
    return found


def _times(value: object, placement: Sequence[int], where: str) -> list[float]:
    """A time for each stage."""
    ranks, stages = 1 + max(placement), len(placement)
    row: list[Any] = value if isinstance(value, list) else [value] * ranks
    for each in row:
        _number(each, where, "time")
    if len(row) == stages:
        return [float(each) for each in row]
    if len(row) == ranks:
        return [float(row[rank]) / placement.count(rank) for rank in placement]
    raise ShunterError(
        f"there are {len(row)} times for {ranks} ranks and {stages} stages",
        where=where,
        mend="Give one number, a time for each rank, or a time for each stage.",
    )


def _number(value: object, where: str, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ShunterError(f"{value!r} is no {what}", where=where, mend="Give numbers from 0 on.")


def read_caps(text: str) -> float | list[float]:
    """`4` or `4,4,3,3`: one cap for all ranks, or one for each. Raises ShunterError for anything else."""
    found: list[float] = []
    for part in text.split(","):
        try:
            cap = float(part)
        except ValueError:
            cap = math.nan
        if math.isnan(cap):
            raise ShunterError(
                f"{part.strip()!r} in the cap is no number",
                mend="Give micro-batches of activations, such as 4, or one number for each rank: 4,4,3,3.",
            )
        found.append(cap)
    return found[0] if len(found) == 1 else found
