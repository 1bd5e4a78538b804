"""What the models wrote: the same prompt answered by each model, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shunter.report.facts import JobFacts, read_lines
from shunter.report.numbers import number

MAX_TEXT = 1500  # characters of a prompt or an answer
MAX_A_TASK = 6
MAX_GROUPS = 30


@dataclass(frozen=True)
class Answer:
    """One model's answer. `score` is None where nothing was graded."""

    model: str
    prompt: str
    text: str
    score: float | None

    @property
    def mark(self) -> str:
        return {None: "", 1.0: "right", 0.0: "wrong"}.get(
            self.score, f"score {self.score:.2f}" if self.score else ""
        )

    @property
    def mark_class(self) -> str:
        return self.mark if self.mark in ("right", "wrong") else "dim"


@dataclass
class Group:
    """One item of a task. `prompt` is None when the models saw different renderings of it."""

    task: str
    target: str
    answers: list[Answer] = field(default_factory=list)

    @property
    def prompt(self) -> str | None:
        prompts = {answer.prompt for answer in self.answers}
        return prompts.pop() if len(prompts) == 1 else None


def read_samples(jobs: Iterable[JobFacts], problems: list[str]) -> tuple[list[Group], str]:
    """Groups in the order of the files, and a sentence on what is left out.

    Free samples (`samples.jsonl`) come first, then the first graded items (`items.jsonl`) of each task.
    Items are taken in order, never picked by how good they look.
    """
    jobs = list(jobs)
    groups: dict[tuple[str, str], Group] = {}
    for job in jobs:
        _collect(job, "samples.jsonl", groups, problems)
    for job in jobs:
        _collect(job, "items.jsonl", groups, problems)
    by_task: dict[str, list[Group]] = {}
    for group in groups.values():
        by_task.setdefault(group.task, []).append(group)
    shown = [group for task in by_task.values() for group in task[:MAX_A_TASK]][:MAX_GROUPS]
    note = ""
    if len(shown) < len(groups):
        note = (
            f"Shown are the first {MAX_A_TASK} items of each task, in the order of the file and not chosen; "
            "all of them are in samples.jsonl and items.jsonl of the scores artefact."
        )
    return shown, note


def _collect(job: JobFacts, name: str, groups: dict[tuple[str, str], Group], problems: list[str]) -> None:
    path = job.path / name if job.path else None
    if path is None or not path.is_file():
        return
    seen: dict[tuple[str, str], int] = {}
    for line in read_lines(path, problems):
        answer_text = _text(line, "response", "completion", "text", "output")
        if answer_text is None:
            continue
        model, task = str(line.get("model") or _only_model(job)), str(line.get("task") or "")
        order = seen[model, task] = seen.get((model, task), -1) + 1
        if order >= MAX_A_TASK + 1:  # one more than shown tells that there is more
            continue
        item = next((str(line[key]) for key in ("id", "item", "index") if key in line), str(order))
        group = groups.setdefault((task, item), Group(task, clip(_text(line, "target") or "")))
        if any(answer.model == model for answer in group.answers):
            continue  # the same item is in samples.jsonl and items.jsonl
        score = number(line.get("score"))
        group.answers.append(Answer(model, clip(_text(line, "prompt") or ""), clip(answer_text), score))


def _only_model(job: JobFacts) -> str:
    return str(job.metrics.get("model") or job.what.get("model") or job.name)


def _text(line: Mapping[str, Any], *keys: str) -> str | None:
    for key in keys:
        if isinstance(line.get(key), str):
            return str(line[key])
        if isinstance(line.get(key), int | float | list):
            return str(line[key])
    return None


def clip(text: str) -> str:
    """The beginning of a long text, with how much is left out."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT} more characters)"
