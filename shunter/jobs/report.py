"""The job `report`: an offline HTML page on the artefacts named, as an artefact of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.recipe.job import Input, JobConfig, JobContext

TYPES = ("corpus", "conversations", "tokenizer", "tokens", "model", "scores")


class ReportConfig(JobConfig):
    """A page on the artefacts of a run."""

    title: str = Field("report", min_length=1, description="Heading of the page.")
    of: Annotated[list[str], Input(*TYPES)] = Field(
        min_length=1, description="Jobs whose artefacts the page shows, in this order."
    )


class ReportJob:
    """Writes `report.html`. Its identity is its inputs and title, so a new score makes a new page."""

    kind: ClassVar[str] = "report"
    produces: ClassVar[str] = "report"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = ReportConfig

    def check(self, config: ReportConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[ReportConfig]) -> dict[str, Any]:
        from shunter.report.facts import from_artefacts
        from shunter.report.page import render

        facts = from_artefacts(context.config.title, context.many("of"))
        page = render(facts)
        (context.out / "report.html").write_text(page, encoding="utf-8")
        for problem in facts.problems:
            context.events.write("problem", problem=problem)
        return {"bytes": len(page.encode()), "problems": len(facts.problems)}


JOB = ReportJob()
