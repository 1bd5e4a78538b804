"""A layout written down: who holds what, what is cut by which axis, and what travels in a step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError

VERSION = 1
FORMAT = "shunter-layout"


@dataclass(frozen=True)
class RankHolds:
    """What one rank has. Bytes, but for `parameters`.

    place:    its coordinates on the axes that have more than one rank.
    stages:   numbers of its stages; layers: [first, after the last) of each.
    gradients: of what it keeps, and other ranks' parts of whole ones that wait to be given out (fsdp).
    gathered: whole weights that are here for a while, at most (fsdp).
    activations: of one micro-batch, kept for its backward; at_once: the most of all that are in flight;
    together: the most of these and of gradients, which come as the first activations go.
    moment: what the fullest moment has besides: gradients on their way through a layer, logits, or copies in
    which gradients are added up.
    """

    rank: int
    place: dict[str, int]
    stages: list[int]
    layers: list[list[int]]
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    at_once: int
    together: int | None = None  # None: an earlier version's, which took the sum
    moment: int = 0

    @property
    def total(self) -> int:
        """Bytes that the rank needs, without what kernels and the allocator take besides."""
        both = self.gradients + self.at_once if self.together is None else self.together
        return self.weights + self.optimizer + self.gathered + both + self.moment


@dataclass(frozen=True)
class KindOfWeight:
    """kind: embedding, qkv, ... whole: its shape. local: on the first rank that has it. axes: that cut it."""

    kind: str
    whole: list[int]
    local: list[int]
    axes: list[str]


@dataclass(frozen=True)
class Layout:
    """settings: what it was made from. traffic: of each rank, bytes sent in a step, by kind.

    notes: what is guessed, and what is not counted.
    """

    settings: dict[str, Any]
    ranks: list[RankHolds]
    kinds: list[KindOfWeight]
    traffic: list[dict[str, int]]
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As JSON values."""
        ranks = [{**asdict(each), "total": each.total} for each in self.ranks]
        return {"format": FORMAT, "version": VERSION, **asdict(self), "ranks": ranks}

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises ShunterError where that is not possible."""
        try:
            path.write_text(json.dumps(self.data(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ShunterError(f"cannot be written ({error.strerror})", where=str(path)) from None

    @classmethod
    def load(cls, path: Path) -> Layout:
        """A saved one. Raises ShunterError for a file that is none, or of a newer version."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ShunterError(f"no saved layout can be read ({error})", where=str(path)) from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ShunterError(
                "this is no saved layout", where=str(path), mend="Write one with `shunter layout --save`."
            )
        if data.get("version") != VERSION:
            raise ShunterError(
                f"a layout of version {data.get('version')}; this shunter reads {VERSION}",
                where=str(path),
                mend="Write it again with `shunter layout --save`.",
            )
        try:
            ranks = [
                RankHolds(**{key: value for key, value in each.items() if key != "total"})
                for each in data["ranks"]
            ]
            kinds = [KindOfWeight(**each) for each in data["kinds"]]
            return cls(data["settings"], ranks, kinds, data["traffic"], data["notes"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ShunterError(f"a part of the saved layout is missing ({error})", where=str(path)) from None

    def figures(self) -> dict[str, Any]:
        """What two layouts are compared by: name -> value."""
        found: dict[str, Any] = {f"settings.{key}": value for key, value in _flat(self.settings)}
        found["ranks"] = len(self.ranks)
        for name in ("parameters", "weights", "gradients", "optimizer", "gathered", "at_once", "total"):
            found[f"fullest rank.{name}"] = max(getattr(each, name) for each in self.ranks)
        for each in self.kinds:
            found[f"{each.kind}.local"] = each.local
            found[f"{each.kind}.axes"] = each.axes
        for kind in sorted({kind for sent in self.traffic for kind in sent}):
            found[f"most sent by a rank.{kind}"] = max(sent.get(kind, 0) for sent in self.traffic)
        return found

    def diff(self, other: Layout) -> dict[str, tuple[Any, Any]]:
        """What is not the same: name -> (here, there). None where one has no such figure."""
        here, there = self.figures(), other.figures()
        return {
            name: (here.get(name), there.get(name))
            for name in dict.fromkeys([*here, *there])
            if here.get(name) != there.get(name)
        }


def _flat(data: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
