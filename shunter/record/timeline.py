"""Timelines: what each lane of each rank did, and when. Simulated and measured runs share this type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMELINE_FORMAT = 1


@dataclass(frozen=True, order=True)
class Span:
    """One piece of work. `begin` and `end` are seconds from the timeline's zero; `end >= begin`.

    A lane does one thing at a time (a compute stream, a copy stream, a communicator), so spans of one
    (rank, lane) may touch but not overlap; `Timeline.overlaps` finds those that do. An instant
    (`end == begin`) is allowed.
    """

    rank: int
    lane: str
    name: str
    begin: float
    end: float
    args: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"span {self.name!r}: rank {self.rank} is negative")
        if not (math.isfinite(self.begin) and math.isfinite(self.end)):
            raise ValueError(f"span {self.name!r}: times {self.begin}, {self.end} are not finite")
        if self.end < self.begin:
            raise ValueError(f"span {self.name!r} ends at {self.end} before it begins at {self.begin}")

    @property
    def seconds(self) -> float:
        return self.end - self.begin


Lane = tuple[int, str]


class Timeline:
    """Spans in the order added. `name` tells what it is of; it becomes the trace's title."""

    def __init__(self, spans: Iterable[Span] = (), *, name: str = "timeline") -> None:
        self.name = name
        self._spans = list(spans)

    def add(self, rank: int, lane: str, name: str, begin: float, end: float, **args: Any) -> Span:
        """Append one span and return it. Raises ValueError for times out of order or not finite."""
        span = Span(rank, lane, name, begin, end, args)
        self._spans.append(span)
        return span

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def begin(self) -> float:
        """Time of the first begin; 0 when empty."""
        return min((span.begin for span in self._spans), default=0.0)

    @property
    def end(self) -> float:
        """Time of the last end; 0 when empty."""
        return max((span.end for span in self._spans), default=0.0)

    @property
    def elapsed(self) -> float:
        """Seconds from the first begin to the last end."""
        return self.end - self.begin

    def lanes(self) -> dict[Lane, list[Span]]:
        """Spans by (rank, lane), each in order of begin; lanes in order of rank, then name."""
        lanes: dict[Lane, list[Span]] = {}
        for span in sorted(self._spans):
            lanes.setdefault((span.rank, span.lane), []).append(span)
        return {lane: sorted(spans, key=lambda span: (span.begin, span.end)) for lane, spans in lanes.items()}

    def busy(self, lane: Lane) -> float:
        """Seconds in which the lane did something; time covered twice counts once."""
        total, covered = 0.0, -math.inf
        for span in self.lanes().get(lane, []):
            total += max(0.0, span.end - max(span.begin, covered))
            covered = max(covered, span.end)
        return total

    def idle(self, lane: Lane) -> float:
        """Seconds of the whole timeline's `elapsed` in which the lane did nothing."""
        return self.elapsed - self.busy(lane)

    def overlaps(self) -> list[tuple[Span, Span]]:
        """Pairs of neighbouring spans on one lane that overlap. A sound schedule has none."""
        pairs = []
        for spans in self.lanes().values():
            reach: Span | None = None
            for span in spans:
                if reach is not None and span.begin < reach.end:
                    pairs.append((reach, span))
                if reach is None or span.end > reach.end:
                    reach = span
        return pairs

    def to_json(self) -> dict[str, Any]:
        """Plain data with the format's version. `args` must be plain JSON data."""
        return {
            "format": TIMELINE_FORMAT,
            "name": self.name,
            "spans": [
                [span.rank, span.lane, span.name, span.begin, span.end, dict(span.args)]
                for span in self._spans
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timeline:
        """The timeline that `to_json` wrote. Raises ValueError for another format."""
        if data.get("format") != TIMELINE_FORMAT:
            raise ValueError(f"timeline format {data.get('format')!r} is not {TIMELINE_FORMAT}")
        return cls((Span(*span) for span in data["spans"]), name=str(data["name"]))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Timeline:
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))

    def to_trace(self) -> dict[str, Any]:
        """Chrome's trace-event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

        A rank is a process, a lane a thread; times are microseconds. Complete events ("X") need no
        matching pairs and stay valid in a file that was cut short.
        """
        events: list[dict[str, Any]] = []
        ranks: set[int] = set()
        threads: dict[int, int] = {}
        for (rank, lane), spans in self.lanes().items():
            if rank not in ranks:
                ranks.add(rank)
                events.append(_label("process_name", rank, 0, name=f"rank {rank}"))
                events.append(_label("process_sort_index", rank, 0, sort_index=rank))
            thread = threads[rank] = threads.get(rank, 0) + 1
            events.append(_label("thread_name", rank, thread, name=lane))
            events.append(_label("thread_sort_index", rank, thread, sort_index=thread))
            for span in spans:
                events.append(
                    {
                        "ph": "X",
                        "name": span.name,
                        "cat": lane,
                        "pid": rank,
                        "tid": thread,
                        "ts": (span.begin - self.begin) * 1e6,
                        "dur": span.seconds * 1e6,
                        "args": dict(span.args),
                    }
                )
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"name": self.name}}

    def save_trace(self, path: Path) -> None:
        """Write `to_trace` as a `.json` file for Perfetto."""
        path.write_text(json.dumps(self.to_trace(), allow_nan=False), encoding="utf-8")


def _label(kind: str, rank: int, thread: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": thread, "args": args}
