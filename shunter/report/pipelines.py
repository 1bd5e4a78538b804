"""Pipelines that trained: a step's simulated timeline above the measured one, and how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup

from shunter.record import events
from shunter.record.timeline import Timeline
from shunter.report import numbers
from shunter.report.contents import Table
from shunter.report.facts import JobFacts
from shunter.schedule import draw
from shunter.schedule.summary import Figures, figures, held

KINDS = ("simulated", "measured")
MAX_PICTURES = 8  # of about 150 kB each at most; the jobs after them get their numbers alone
SEPARATE = 600  # actions of a timeline that get an element, with its times, each
MOST = 2500  # actions of a timeline that is drawn


@dataclass
class Pipeline:
    """A job's timelines: the table of numbers, the drawing (or None) and remarks."""

    name: str
    table: Table
    picture: Markup | None
    notes: list[str] = field(default_factory=list)


def describe_pipelines(jobs: Sequence[JobFacts], problems: list[str]) -> list[Pipeline]:
    """One for each job that kept a timeline, in the order of `jobs`. What cannot be read is a problem."""
    found: list[Pipeline] = []
    for job in jobs:
        if job.log is None:
            continue
        timelines = {}
        for kind in KINDS:
            path = job.log / f"timeline-{kind}.json"
            timeline = read_timeline(path, kind, problems) if path.is_file() else None
            if timeline is not None:
                timelines[kind] = timeline
        if timelines:
            drawn = sum(pipeline.picture is not None for pipeline in found)
            found.append(_pipeline(job, job.log, timelines, drawn < MAX_PICTURES))
    return found


def read_timeline(path: Path, name: str, problems: list[str]) -> Timeline | None:
    """What ranks computed, by the name it is shown under; None with a sentence in `problems` if damaged."""
    try:
        spans = [span for span in Timeline.load(path) if span.lane == "compute"]
        for span in spans:
            if not (isinstance(span.rank, int) and isinstance(span.args, Mapping)):
                raise ValueError(f"{span.name!r} is no span")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return None
    if not spans:
        problems.append(f"{path.parent.name}/{path.name} has no action")
        return None
    return Timeline(spans, name=name)


def _pipeline(job: JobFacts, log: Path, timelines: Mapping[str, Timeline], draws: bool) -> Pipeline:
    rows = {kind: figures(timeline) for kind, timeline in timelines.items()}
    made = Pipeline(job.name, _table(_step(log), rows), None)
    largest = max(len(timeline) for timeline in timelines.values())
    if largest > MOST:
        made.notes.append(
            f"{numbers.count(largest)} actions are too many to draw here; the log has them (timeline-*.json)."
        )
    elif not draws:
        made.notes.append(f"Only the first {MAX_PICTURES} pipelines are drawn.")
    else:
        made.picture = _picture(job.name, timelines, rows)
    return made


def _table(step: str, rows: Mapping[str, Figures]) -> Table:
    measured, simulated = rows.get("measured"), rows.get("simulated")

    def times(name: str) -> list[str]:
        both = [getattr(row, name) if row else None for row in (measured, simulated)]
        return [*map(_time, both), _percent(*both)]

    idle = [row.idle_over_ideal if row else None for row in (measured, simulated)]
    apart = numbers.MISSING if None in idle else numbers.signed(idle[0] - idle[1], "fraction")  # type: ignore[operator]
    return Table(
        f"Timeline of {step}",
        [
            ["Step time, first action to last", *times("elapsed")],
            ["Longest span of a rank", *times("longest_span")],
            ["Work of the busiest rank (ideal)", *times("ideal")],
            ["Idle / ideal", *(numbers.value(value, "fraction") for value in idle), apart],
        ],
        ["", "Measured", "Simulated", "Difference"],
        "num",
    )


def _picture(name: str, timelines: Mapping[str, Timeline], rows: Mapping[str, Figures]) -> Markup:
    """Both on one scale, in seconds or milliseconds."""
    longest = max(row.elapsed for row in rows.values())
    unit, factor = (" s", 1.0) if longest >= 1 else (" ms", 1e3)
    scaled = [
        Timeline(
            (replace(span, begin=span.begin * factor, end=span.end * factor) for span in timeline),
            name=timeline.name,
        )
        for timeline in timelines.values()
    ]
    told = " and ".join(f"{kind} in {_time(row.elapsed)}" for kind, row in rows.items())
    label = f"Timeline of a step of {name}: {rows[next(iter(rows))].ranks} ranks, {told}."
    return Markup(draw.svg(scaled, held(scaled[0]), unit, label=label, separate=SEPARATE, style=""))


def _step(log: Path) -> str:
    path = log / "events.jsonl"
    told = [event for event in events.read(path) if event["event"] == "timeline"] if path.is_file() else []
    step = told[-1].get("step") if told else None
    return f"step {step}" if isinstance(step, int) else "a step"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return numbers.MISSING
    return f"{seconds:.4g} s" if seconds >= 1 else f"{1e3 * seconds:.4g} ms"


def _percent(measured: float | None, simulated: float | None) -> str:
    if measured is None or not simulated:
        return numbers.MISSING
    return f"{100 * (measured / simulated - 1):+.1f} %".replace("-", "\u2212")
