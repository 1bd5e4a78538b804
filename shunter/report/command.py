"""What `shunter report` does, without its command line."""

from __future__ import annotations

import json
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.report import numbers
from shunter.report.facts import Facts
from shunter.report.page import read_scores, render
from shunter.report.runs import find_run, from_run
from shunter.report.summary import score_lines


def write_report(
    store: Path, ref: str | None, out: Path | None, *, json_only: bool = False, open_browser: bool = False
) -> list[str]:
    """Write the page of a run and return the lines to print.

    With `json_only` the lines are one JSON object, and the page is written only when `out` is given.
    Raises ShunterError when there is no such run or the file cannot be written.
    """
    folder = find_run(store, ref)
    facts = from_run(store, folder)
    target = out or (None if json_only else folder / "report.html")
    if target is not None:
        page = render(facts)
        try:
            target.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ShunterError(
                f"cannot write the report: {error.strerror}", where=str(target), mend="Choose another --out."
            ) from error
        if open_browser:
            webbrowser.open(target.resolve().as_uri())
    if json_only:
        return [json.dumps(as_data(facts, target), ensure_ascii=False, indent=2)]
    lines = [line for job in facts.of_type("scores") for line in score_lines(read_scores(job, []))]
    return [*lines, f"{target} ({numbers.size(target.stat().st_size)})" if target else ""]


def as_data(facts: Facts, page: Path | None) -> dict[str, Any]:
    """The facts as plain JSON data: run, jobs with time (s), memory and size (bytes), scores."""
    found = [(job, read_scores(job, facts.problems)) for job in facts.of_type("scores")]
    return {
        "run": facts.run,
        "name": facts.title,
        "state": facts.state,
        "begin": facts.began,
        "seconds": facts.seconds,
        "report": str(page) if page else None,
        "jobs": [
            {
                "name": job.name,
                "kind": job.kind,
                "state": job.state,
                "artefact": job.path.name if job.path else None,
                "seconds": job.seconds,
                "peak_bytes": job.peak_bytes,
                "bytes": job.bytes,
                "attempts": len(job.attempts),
                "metrics": job.metrics,
            }
            for job in facts.jobs
        ],
        "scores": [asdict(score) for _, scores in found for score in scores.scores],
        "comparisons": [
            {**asdict(pair), "excludes_zero": pair.excludes_zero}
            for _, scores in found
            for pair in scores.pairs
        ],
        "problems": facts.problems,
    }
