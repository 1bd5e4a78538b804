"""Links as a person writes them: a YAML file of latency and bandwidth, of all pairs of ranks or of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from shunter.config import yaml
from shunter.config.base import Config
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.schedule.costs import Links

_PAIR = re.compile(r"(\d+)-(\d+)")


class Link(Config):
    """From one rank to another."""

    latency: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Time from leaving to arriving, in the costs' unit."
    )
    bandwidth: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Bytes in a unit of time; none: messages take no room."
    )


class LinkFile(Link):
    """All pairs of ranks, and those that differ."""

    pairs: dict[str, Link] = Field(
        {}, description="`0-1`: from rank 0 to rank 1, and back unless `1-0` is given."
    )


def read_links(path: Path, ranks: int, sizes: Mapping[str, float], *, blocking: bool = False) -> Links:
    """Links from a file such as

        latency: 0.02
        bandwidth: 8e8
        pairs:
          1-2: {latency: 0.2, bandwidth: 1e8}

    sizes: bytes of each payload, as in the file of costs; needed where a bandwidth is given.

    Raises ShunterError for a file that is not so, for pairs that are none of the ranks', and where bytes
    are missing.
    """
    where = str(path)
    source = yaml.load(path)
    found = parse(LinkFile, source.data, source)
    if not sizes and any(link.bandwidth for link in (found, *found.pairs.values())):
        raise ShunterError(
            "links have a bandwidth, and nothing says how many bytes a message has",
            where=where,
            mend='Add `"bytes": {"activation": 1e6, "gradient": 1e6}` to the file of --costs.',
        )
    between: dict[tuple[int, int], tuple[float, float]] = {}
    back: dict[tuple[int, int], tuple[float, float]] = {}
    for name, link in found.pairs.items():
        pair = _PAIR.fullmatch(name)
        ends = (int(pair[1]), int(pair[2])) if pair else (0, 0)
        if ends[0] == ends[1] or max(ends) >= ranks:
            raise ShunterError(
                f"{name!r} is no pair of {ranks} ranks", where=where, mend="Write pairs as 0-1, 1-2."
            )
        between[ends] = back[ends[1], ends[0]] = _times(link)
    latency, occupied = _times(found)
    return Links(latency, occupied, {**back, **between}, blocking, dict(sizes))


def _times(link: Link) -> tuple[float, float]:
    """Latency, and the time that a byte takes."""
    return link.latency, 1 / link.bandwidth if link.bandwidth else 0.0
