"""The page: facts arranged for the template, rendered into one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import shunter
from shunter.report import lineage, numbers
from shunter.report.contents import describe_data, environment_table
from shunter.report.curves import group_curves
from shunter.report.facts import Facts, JobFacts, read_json
from shunter.report.pipelines import describe_pipelines
from shunter.report.plans import describe_plans
from shunter.report.samples import read_samples
from shunter.report.scores import Pair, Score, Scores, parse
from shunter.report.summary import seen_in_part

HERE = Path(__file__).parent
PLOT_WIDTH, PLOT_PAD = 140.0, 6.0
MAX_YAML = 20_000  # characters of one job's configuration


def render(facts: Facts) -> str:
    """The whole page as HTML. Everything that is not our own style or script is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "hover.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        page=arrange(facts),
        version=shunter.__version__,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def arrange(facts: Facts) -> dict[str, Any]:
    """All that the template shows. Reads the artefacts; what fails is named in `facts.problems`."""
    scores = [(job, read_scores(job, facts.problems)) for job in facts.of_type("scores")]
    tables = [score_section(job.name, found) for job, found in scores if found.scores or found.pairs]
    samples, samples_note = read_samples(facts.with_answers(), facts.problems)
    groups = group_curves(facts.jobs)
    pipelines = describe_pipelines(facts.jobs, facts.problems)
    plans = describe_plans(facts.jobs, facts.problems)
    corpora = describe_data(facts)
    environment = environment_table(attempt for job in facts.jobs for attempt in job.attempts)
    graph = _graph(facts.jobs) if facts.jobs else None
    sections = [
        ("scores", "Scores", tables),
        ("training", "Training", groups),
        ("plans", "Plans", plans),
        ("pipelines", "Pipelines", pipelines),
        ("samples", "Samples", samples),
        ("jobs", "Jobs", True),
        ("data", "Data", corpora),
        ("lineage", "Lineage", graph),
        ("configuration", "Configuration", True),
        ("environment", "Environment", environment),
    ]
    return {
        "title": facts.title,
        "lead": _lead(facts),
        "problems": facts.problems,
        "sections": [(anchor, name) for anchor, name, content in sections if content],
        "scores": tables,
        "groups": groups,
        "plans": plans,
        "pipelines": pipelines,
        "samples": samples,
        "samples_note": samples_note,
        "jobs": _job_rows(facts.jobs),
        "total": _total(facts),
        "jobs_note": _jobs_note(facts),
        "corpora": corpora,
        "graph": graph,
        "configurations": [_configuration(job) for job in facts.jobs],
        "environment": environment,
        "written": numbers.moment(time.time()),
    }


def read_scores(job: JobFacts, problems: list[str]) -> Scores:
    """The scores of a finished evaluation; empty when the file is missing or damaged."""
    if job.path is None:
        return Scores()
    data = read_json(job.path / "scores.json", problems)
    return parse(data, model=str(job.what.get("model") or job.name))


def score_section(name: str, scores: Scores) -> dict[str, Any]:
    """Rows of the score table, tasks together, each task on one scale."""
    models = list(dict.fromkeys(score.model for score in scores.scores))
    rows: list[dict[str, Any]] = []
    for task, metric in scores.tasks():
        same = [score for score in scores.scores if (score.task, score.metric) == (task, metric)]
        marks = [
            m
            for s in same
            for m in (s.low, s.value, s.high, *(b.value for b in s.baselines))
            if m is not None
        ]
        rows.extend(
            _score_row(score, index == 0, marks, models.index(score.model))
            for index, score in enumerate(same)
        )
    return {"name": name, "rows": rows, "pairs": [_pair_row(pair) for pair in scores.pairs]}


def _score_row(score: Score, first: bool, marks: Sequence[float], color: int) -> dict[str, Any]:
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"[{numbers.value(score.low, score.unit)}, {numbers.value(score.high, score.unit)}]"
    value = numbers.value(score.value, score.unit)
    at = _scale(marks)
    return {
        "first": first,
        "task": score.task,
        "metric": score.metric.replace("_", " "),
        "model": score.model,
        "value": value,
        "unit": _unit(score.unit),
        "interval": interval or numbers.MISSING,
        "n": numbers.count(score.n),
        "note": seen_in_part(score.seen_in_part) if score.seen_in_part else "",
        "baselines": [(b.name, numbers.value(b.value, score.unit)) for b in score.baselines],
        "plot": {
            "label": f"{value} {interval}",
            "value": at(score.value),
            "low": at(score.low) if interval else None,
            "high": at(score.high) if interval else None,
            "baselines": [at(b.value) for b in score.baselines],
            "zero": None,
            "color": color % 8,
        },
    }


def _pair_row(pair: Pair) -> dict[str, Any]:
    at = _scale([pair.low, pair.high, pair.difference, 0.0])
    value = numbers.signed(pair.difference, pair.unit)
    interval = f"[{numbers.signed(pair.low, pair.unit)}, {numbers.signed(pair.high, pair.unit)}]"
    plot = {
        "label": f"{value} {interval}",
        "value": at(pair.difference),
        "low": at(pair.low),
        "high": at(pair.high),
    }
    return {
        "task": pair.task,
        "metric": pair.metric.replace("_", " "),
        "a": pair.a,
        "b": pair.b,
        "value": value,
        "unit": _unit(pair.unit),
        "interval": interval,
        "n": numbers.count(pair.n),
        "excludes_zero": pair.excludes_zero,
        "plot": {**plot, "baselines": [], "zero": at(0.0), "color": 0},
    }


class _scale:
    """Positions of values between the lowest and the highest mark, in the plot's units."""

    def __init__(self, marks: Sequence[float]) -> None:
        self.low, self.span = min(marks), max(marks) - min(marks) or 1.0

    def __call__(self, value: float | None) -> float | None:
        if value is None:
            return None
        return round(PLOT_PAD + (value - self.low) / self.span * (PLOT_WIDTH - 2 * PLOT_PAD), 1)


def _unit(unit: str) -> str:
    return "" if unit == "fraction" else unit.replace("_", " ")


def _lead(facts: Facts) -> str:
    """What ran, where and when, in two sentences."""
    parts = []
    if facts.run is not None:
        parts.append(f"Run {facts.run}" + (f", {facts.state}" if facts.state else ""))
    if facts.began is not None:
        parts.append(f"begun {numbers.moment(facts.began)}")
    if facts.seconds is not None:
        parts.append(f"{numbers.duration(facts.seconds)} in all")
    parts.append(f"{len(facts.jobs)} job{'' if len(facts.jobs) == 1 else 's'}")
    sentence = "; ".join(parts)
    recipe = f" Recipe: {facts.recipe}." if facts.recipe else ""
    return f"{sentence[:1].upper()}{sentence[1:]}.{recipe}"


def _job_rows(jobs: Sequence[JobFacts]) -> list[dict[str, Any]]:
    longest = max((job.seconds or 0.0 for job in jobs), default=0.0) or 1.0
    largest = max((job.peak_bytes or 0.0 for job in jobs), default=0.0) or 1.0
    return [
        {
            "name": job.name,
            "kind": job.kind,
            "state": f"{job.state}, from an earlier run" if job.reused else job.state,
            "state_class": _state_class(job),
            "seconds": numbers.duration(job.seconds),
            "seconds_share": round(100 * (job.seconds or 0.0) / longest, 1),
            "peak": numbers.size(job.peak_bytes),
            "peak_share": round(100 * (job.peak_bytes or 0.0) / largest, 1),
            "size": numbers.size(job.bytes),
            "attempts": len(job.attempts) or numbers.MISSING,
            "error": job.error,
        }
        for job in jobs
    ]


def _total(facts: Facts) -> dict[str, str] | None:
    seconds = [job.seconds for job in facts.jobs if job.seconds is not None]
    if len(facts.jobs) < 2 or not seconds:
        return None
    return {
        "seconds": numbers.duration(sum(seconds)),
        "peak": numbers.size(max((job.peak_bytes for job in facts.jobs if job.peak_bytes), default=None)),
        "size": numbers.size(sum(job.bytes or 0 for job in facts.jobs)),
    }


def _jobs_note(facts: Facts) -> str:
    notes = ["Time is summed over a job's attempts; peak memory is the largest resident set of the process."]
    if any(job.reused for job in facts.jobs):
        notes.append("Jobs from an earlier run show the time that they took then.")
    return " ".join(notes)


def _state_class(job: JobFacts) -> str:
    return job.state if job.state in ("done", "failed", "waiting", "running") else "other"


def _graph(jobs: Sequence[JobFacts]) -> dict[str, Any]:
    by_name = {job.name: job for job in jobs}
    for name in [name for job in jobs for name in job.inputs]:
        # An input that the report was not given is drawn by name, so that nothing seems to come from nowhere.
        by_name.setdefault(name, JobFacts(name, kind="not in this report", state="other"))
    graph = lineage.lay_out({name: job.inputs for name, job in by_name.items()})
    boxes = []
    for box in graph.boxes:
        job = by_name[box.name]
        boxes.append(
            {
                "x": round(box.x, 1),
                "y": round(box.y, 1),
                "name": _fit(box.name, 21),
                "title": f"{job.name} {job.id}".strip(),
                "kind": job.kind,
                "size": numbers.size(job.bytes) if job.bytes is not None else "",
                "id": job.id[:12] or ("" if job.state == "other" else job.state),
                "state_class": _state_class(job),
            }
        )
    made = [
        f"{job.name} from {', '.join(job.inputs)}" if job.inputs else f"{job.name} from sources"
        for job in jobs
    ]
    return {
        "boxes": boxes,
        "paths": graph.paths,
        "width": round(graph.width, 1),
        "height": round(graph.height, 1),
        "box_width": lineage.BOX_WIDTH,
        "box_height": lineage.BOX_HEIGHT,
        "description": "Lineage. " + "; ".join(made) + ".",
    }


def _fit(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _configuration(job: JobFacts) -> dict[str, str]:
    return {
        "name": job.name,
        "kind": job.kind,
        "id": job.id,
        "what": _yaml(job.what),
        "how": _yaml(job.how),
        "metrics": _yaml(_without_plan(job.metrics)) if job.metrics else "",
    }


def _without_plan(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """An account's plan stands in the section on plans, as far as it is shown."""
    account = metrics.get("account")
    if not isinstance(account, Mapping):
        return metrics
    rest = {key: value for key, value in account.items() if key not in ("plan", "ranks")}
    return {**metrics, "account": rest}


def _yaml(tree: Mapping[str, Any]) -> str:
    if not tree:
        return "(nothing recorded)"
    text: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=88)
    return text if len(text) <= MAX_YAML else f"{text[:MAX_YAML]}\n… ({len(text) - MAX_YAML} more characters)"
