"""Training curves: metrics of the event logs, laid out as charts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shunter.record import events
from shunter.report.chart import MAX_POINTS, Chart, Point, Series, line_chart, smooth
from shunter.report.facts import JobFacts
from shunter.report.numbers import number

MAX_VARIANTS = 8  # colours that can be told apart; further variants of a sweep are named, not drawn
PAGE_POINTS = 36_000  # of all charts together, about 1 MB of page; many jobs get coarser curves
MIN_POINTS = 40
SMOOTH_FROM = 60  # fewer points than this are shown as they are

# metric, title, unit, whether the axis begins at zero
PANELS: list[tuple[str, str, str, bool]] = [
    ("rl/reward", "Reward of a step's answers", "", False),
    ("rl/kl", "Divergence from the model at the start", "nats per token", True),
    ("rl/length", "Length of answers", "tokens", True),
    ("rl/largest_gap", "Largest gap of log-probabilities between trainer and generator", "nats", True),
    ("rl/staleness", "Age of the weights that wrote", "updates", True),
    ("rl/off_policy", "Distance of the policy from the weights that wrote", "nats per token", True),
    ("rl/waited", "Time in which learning waited for answers", "s", True),
    ("rl/tool_calls", "Calls of tools in an answer", "", True),
    ("pairs/accuracy", "Pairs whose better answer is preferred", "fraction", False),
    ("heldout/accuracy", "Held-out pairs whose better answer is preferred", "fraction", False),
    ("valid/bits_per_byte", "Held-out bits per byte", "", False),
    ("train/tokens_per_second", "Throughput", "tokens/s", True),
    ("train/step_seconds", "Time of a step", "s", True),
    ("train/lr", "Learning rate", "", True),
    ("train/grad_norm", "Gradient norm before clipping", "", True),
    ("train/memory_mib", "Memory", "MiB", True),
    ("train/mfu", "Model FLOP/s utilisation", "fraction of peak", True),
]
# metrics that older runs have under another name
FORMERLY = {"rl/largest_gap": "rl/max_gap"}


@dataclass
class Group:
    """The charts of one job, or of all variants of a sweep together."""

    name: str
    charts: list[Chart] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)


@dataclass
class _Run:
    job: JobFacts
    rows: list[dict[str, Any]]
    log: list[dict[str, Any]]


def group_curves(jobs: Sequence[JobFacts]) -> list[Group]:
    """One group for each training job (any job that logged metrics by step), in the order of `jobs`."""
    stems: dict[str, list[_Run]] = {}
    for job in jobs:
        path = job.log / "events.jsonl" if job.log else None
        if path is None or not path.is_file():
            continue
        rows = events.read_metrics(path)
        if rows:
            stems.setdefault(job.stem, []).append(_Run(job, rows, events.read(path)))
    lines = sum(len(PANELS) + 3 for runs in stems.values() for _ in runs[:MAX_VARIANTS])
    limit = max(MIN_POINTS, min(MAX_POINTS, PAGE_POINTS // max(lines, 1)))
    return [_group(stem, runs, limit) for stem, runs in stems.items()]


def _group(stem: str, runs: list[_Run], limit: int) -> Group:
    group = Group(stem)
    if len(runs) > MAX_VARIANTS:
        hidden = ", ".join(run.job.name for run in runs[MAX_VARIANTS:])
        group.facts.append(f"The charts show the first {MAX_VARIANTS} variants; not drawn: {hidden}.")
        runs = runs[:MAX_VARIANTS]
    known = {name for name, *_ in PANELS} | {"train/loss", "valid/loss", *FORMERLY.values()}
    panels = [*_loss_charts(runs, limit), *(_panel(runs, *panel, limit) for panel in PANELS)]
    others = sorted({name for run in runs for row in run.rows for name in row if "/" in name} - known)
    panels += [_panel(runs, name, name, "", False, limit) for name in others if name != "train/tokens"]
    group.charts = [chart for chart in panels if chart is not None]
    for run in runs:
        group.facts.extend(_sentences(run, stem))
    return group


def _loss_charts(runs: Sequence[_Run], limit: int) -> list[Chart | None]:
    """Training and held-out loss: in one chart for a single job, in one each for a sweep's variants."""
    if len(runs) > 1:
        smoothed = [Series(_variant(run), _smoothed(run), index) for index, run in enumerate(runs)]
        return [
            line_chart("Training loss, smoothed", "nats per token", smoothed, limit=limit),
            _panel(runs, "valid/loss", "Held-out loss", "nats per token", False, limit),
        ]
    run = runs[0]
    train, valid = _points(run, "train/loss"), _points(run, "valid/loss")
    smoothed = [Series("train, smoothed", _smoothed(run))]
    if len(train) < SMOOTH_FROM:
        lines = [Series("train", train)]
    else:
        lines = [Series("train, each step", train, faint=True), *smoothed]
    lines.append(Series("held-out", valid, 1, dots=len(valid) <= 30))
    return [line_chart("Loss", "nats per token", lines, marks=_marks(runs), limit=limit)]


def _smoothed(run: _Run) -> list[Point]:
    points = _points(run, "train/loss")
    return smooth(points, len(points) // 80 + 1) if len(points) >= SMOOTH_FROM else points


def _panel(
    runs: Sequence[_Run], metric: str, title: str, unit: str, from_zero: bool, limit: int
) -> Chart | None:
    series = []
    for index, run in enumerate(runs):
        points = _points(run, metric)
        label = _variant(run) if len(runs) > 1 else title
        series.append(Series(label, points, index, dots=metric.startswith("valid/") and len(points) <= 30))
    return line_chart(title, unit, series, from_zero=from_zero, marks=_marks(runs), limit=limit)


def _points(run: _Run, metric: str) -> list[Point]:
    old = FORMERLY.get(metric, metric)
    values = ((float(row["step"]), number(row.get(metric, row.get(old)))) for row in run.rows)
    return [(step, value) for step, value in values if value is not None]


def _variant(run: _Run) -> str:
    return run.job.name[len(run.job.stem) :].strip("[]") or run.job.name


def _marks(runs: Sequence[_Run]) -> list[tuple[float, str]]:
    """Steps at which a later attempt went on."""
    if len(runs) != 1:
        return []
    rows = runs[0].rows
    return [
        (float(after["step"]), f"attempt {after['attempt']} goes on from here")
        for before, after in itertools.pairwise(rows)
        if before["attempt"] != after["attempt"]
    ]


def _sentences(run: _Run, stem: str) -> list[str]:
    """Skipped steps and values that cannot be drawn: what a curve hides."""
    prefix = "" if run.job.name == stem else f"{run.job.name}: "
    found = []
    skipped = [event for event in run.log if event["event"] in ("skip", "skipped", "step_skipped")]
    if skipped:
        steps = sorted({event["step"] for event in skipped if isinstance(event.get("step"), int)})
        shown = ", ".join(str(step) for step in steps[:12]) + (" and more" if len(steps) > 12 else "")
        noun = "step was" if len(skipped) == 1 else "steps were"
        found.append(
            f"{prefix}{len(skipped)} {noun} skipped for a loss or gradient that is not finite (step {shown})."
        )
    broken = [row["step"] for row in run.rows if number(row.get("train/loss", 0.0)) is None]
    if broken:
        found.append(
            f"{prefix}The loss is not finite at {len(broken)} logged steps, first at step {broken[0]}; "
            "these are not drawn."
        )
    attempts = sorted({row["attempt"] for row in run.rows})
    if len(attempts) > 1:
        found.append(f"{prefix}Trained in {len(attempts)} attempts; dashed lines show where one took over.")
    return found
