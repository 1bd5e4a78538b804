"""Jobs that trained: predicted beside measured, rank by rank, and how a plan changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shunter.record import events
from shunter.record.timeline import Timeline
from shunter.report import numbers
from shunter.report.contents import Table
from shunter.report.facts import JobFacts
from shunter.report.numbers import number

PARTS = ("compute", "communication", "waiting")
WIDTH, ROW, LEFT, GAP = 720.0, 16.0, 60.0, 4.0
MOST_RANKS, MOST_SPANS = 16, 6000  # of a picture


@dataclass
class Held:
    """A job's account: tables, a picture of what each rank did (or None) and remarks."""

    name: str
    tables: list[Table] = field(default_factory=list)
    picture: Markup | None = None
    notes: list[str] = field(default_factory=list)


def describe_plans(jobs: Sequence[JobFacts], problems: list[str]) -> list[Held]:
    """One for each job that has an account: of its plan, or of the layout that was written by hand."""
    found = []
    for job in jobs:
        made = Held(job.name)
        account = job.metrics.get("account")
        if isinstance(account, Mapping) and isinstance(why := account.get("unpredicted"), str):
            made.notes.append(f"Not predicted: {why}.")
        elif isinstance(account, Mapping):
            made.tables.append(_step(account))
            if isinstance(basis := account.get("basis"), str):
                made.notes.append(
                    f"No plan was made: the layout as it was written is predicted, on this machine {basis}."
                )
            if isinstance(mean := account.get("mean_step"), Mapping):
                made.notes.append(
                    f"Predicted is the mean step: {mean.get('rows')} rows of {mean.get('row')} tokens, "
                    "padding included."
                )
            if table := _ranks(account.get("ranks")):
                made.tables.append(table)
            if isinstance(advice := account.get("advice"), str):
                made.notes.append(f"{advice[:1].upper()}{advice[1:]}.")
        if job.log is not None:
            made.notes += _changes(job.log / "events.jsonl")
            path = job.log / "timeline-ranks.json"
            if path.is_file():
                made.picture = _picture(job.name, path, problems)
        if made.tables or made.notes or made.picture:
            found.append(made)
    return found


def _step(account: Mapping[str, Any]) -> Table:
    rows = [["Step", *_pair(account.get("plan_step_seconds"), account.get("step_seconds"), _time)]]
    rows += [
        [f"Of it {name}", *_pair(account.get(f"plan_{name}_seconds"), account.get(f"{name}_seconds"), _time)]
        for name in PARTS
        if f"{name}_seconds" in account
    ]
    phases = account.get("phases")
    for each in phases if isinstance(phases, list) else ():
        if isinstance(each, Mapping):
            pair = _pair(each.get("plan_seconds"), each.get("seconds"), _time)
            rows.append([f"Of it {each.get('phase')}", *pair])
    if "reference_seconds" in account:
        reference = _pair(account.get("plan_reference_seconds"), account.get("reference_seconds"), _time)
        rows.append(["The reference's pass, once before", *reference])
    memory = _pair(account.get("plan_memory_bytes"), account.get("memory_bytes"), numbers.size)
    rows.append(["Memory, fullest rank and rank 0's process or device", *memory])
    if "plan_writer_memory_bytes" in account:
        writer = _pair(
            account.get("plan_writer_memory_bytes"), account.get("writer_memory_bytes"), numbers.size
        )
        rows.append(["Memory, a process that writes beside", *writer])
    step = account.get("watched_step")
    title = "A step as planned and as measured"
    if isinstance(step, int):
        title += f"; its parts on the rank that computes longest, in step {step}"
    return Table(title, rows, ["", "Predicted", "Measured", "Difference"], "num")


def _ranks(ranks: Any) -> Table | None:
    if not isinstance(ranks, list) or not ranks:
        return None
    rows = []
    for each in ranks:
        if not isinstance(each, Mapping):
            return None
        times = [_time(number(each.get(name))) for name in PARTS]
        pairs = []
        for name in ("peak_bytes", "sent_bytes"):
            pairs += [numbers.size(number(each.get(f"plan_{name}"))), numbers.size(number(each.get(name)))]
        rows.append([str(each.get("rank")), *times, *pairs])
    head = ["Rank", "Compute", "Messages", "Waiting", "Tensors, predicted", "measured", "Sent, predicted",
            "measured"]  # fmt: skip
    return Table("By rank", rows, head, "num")


def _changes(log: Path) -> list[str]:
    notes = []
    for event in events.read(log) if log.is_file() else []:
        if event["event"] == "drift":
            measured, predicted = (number(event.get(name)) for name in ("measured", "predicted"))
            ratio = number(event.get("ratio"))
            times = numbers.MISSING if ratio is None else f"{ratio:.2f}"
            notes.append(
                f"At step {event.get('step')} a step took {_time(measured)}, {times} times the "
                f"{_time(predicted)} of the plan."
            )
        elif event["event"] == "replan":
            was, now = event.get("was"), event.get("is")
            changed = f"from {was} to {now}" if now not in (None, was) else f"{was} stays"
            notes.append(f"Planned anew at step {event.get('step')}: {changed}; {event.get('why')}.")
    return notes


def _picture(name: str, path: Path, problems: list[str]) -> Markup | None:
    """Ranks as rows; only numbers of our own go into it."""
    try:
        timeline = Timeline.load(path)
        spans = [span for span in timeline if span.lane in PARTS and span.rank < MOST_RANKS]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return None
    if not spans or len(spans) > MOST_SPANS:
        return None
    end = max(span.end for span in spans) or 1.0
    ranks = max(span.rank for span in spans) + 1
    height = ranks * (ROW + GAP) + 18
    label = Markup.escape(f"What each rank of {name} did in a step of {_time(end)}: {', '.join(PARTS)}.")
    lines = [f'<svg viewBox="0 0 {WIDTH + LEFT:g} {height:g}" role="img" aria-label="{label}">']
    for rank in range(ranks):
        y = rank * (ROW + GAP)
        lines.append(f'<text class="tick" x="0" y="{y + 12:g}">rank {rank}</text>')
    for span in spans:
        x, width = LEFT + WIDTH * span.begin / end, WIDTH * span.seconds / end
        y = span.rank * (ROW + GAP)
        lines.append(
            f'<rect class="part-{span.lane}" x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{ROW:g}"/>'
        )
    for place, part in enumerate(PARTS):
        x = LEFT + 130 * place
        lines.append(f'<rect class="part-{part}" x="{x:g}" y="{height - 12:g}" width="10" height="10"/>')
        lines.append(f'<text class="tick" x="{x + 15:g}" y="{height - 3:g}">{part}</text>')
    return Markup("".join([*lines, "</svg>"]))


def _pair(predicted: Any, measured: Any, shown: Any) -> list[str]:
    one, other = number(predicted), number(measured)
    apart = numbers.MISSING
    if one and other is not None:
        apart = f"{100 * (other / one - 1):+.1f} %".replace("-", "\u2212")
    return [shown(one), shown(other), apart]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return numbers.MISSING
    return f"{seconds:.4g} s" if seconds >= 1 else f"{1e3 * seconds:.4g} ms"
