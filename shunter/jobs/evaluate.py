"""The job `evaluate`: models are measured on held-out data, and compared item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import MissingExtra, ShunterError
from shunter.evaluate.config import (
    BitsPerByteTask,
    ExactMatchTask,
    LmEvalTask,
    MultipleChoiceTask,
    SamplesTask,
    Task,
    VerifiedTask,
    label,
)
from shunter.jobs import contexts, taught
from shunter.recipe import disk
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import How, Input, JobConfig, JobContext, Stopped

if TYPE_CHECKING:
    from shunter.evaluate.subject import Subject, Tick

FORMAT = 1


def _usual() -> list[Task]:
    return [BitsPerByteTask(), SamplesTask()]


class EvaluateHow(How):
    """Where to evaluate."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")


class EvaluateConfig(JobConfig):
    """Measures models on held-out data, with intervals, baselines and paired comparisons."""

    models: Annotated[list[str], Input("model")] = Field(
        min_length=1, description="Jobs that made the models; each is compared with the first."
    )
    tokens: Annotated[str | None, Input("tokens")] = Field(
        None, description="Job that made rows of a corpus; their held-out documents are scored."
    )
    conversations: Annotated[str | None, Input("conversations")] = Field(
        None, description="Job that made the conversations for exact-match tasks."
    )
    tasks: list[Task] = Field(
        default_factory=_usual,
        min_length=1,
        description="What to measure; when left out: bits per byte, and samples to read.",
    )
    unseen: Literal["locked", "final"] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="A suite that no decision may see. locked: nothing is measured; final: all is decided.",
    )
    how: EvaluateHow = Field(
        default_factory=EvaluateHow, description="Choices that must not change the result."
    )

    @model_validator(mode="after")
    def _inputs(self) -> EvaluateConfig:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models names a job twice")
        names = [label(task) for task in self.tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two tasks are called {twice!r}; give one another `name`")
        for task in self.tasks:
            if isinstance(task, ExactMatchTask | VerifiedTask) and self.conversations is None:
                raise ValueError(f"the task {label(task)!r} needs `conversations`")
            if _needs_text(task) and self.tokens is None:
                raise ValueError(f"the task {label(task)!r} needs `tokens`, rows of a corpus")
        return self


class EvaluateJob:
    """Writes scores.json, items.jsonl (each scored item with its prompt) and samples.jsonl."""

    kind: ClassVar[str] = "evaluate"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = EvaluateConfig

    def check(self, config: EvaluateConfig, base: Path) -> Sequence[str]:
        for task in config.tasks:
            if isinstance(task, MultipleChoiceTask) and task.path is not None:
                from shunter.evaluate.choices import from_file

                from_file(base / task.path, task.prompt)
            if isinstance(task, VerifiedTask):
                taught.check_rewards(task.rewards, None, base)
            if isinstance(task, LmEvalTask):
                if find_spec("lm_eval") is None:
                    raise MissingExtra("lm-eval", extra="lm-eval", purpose=f"The task {label(task)!r}")
                if not list((base / task.path).glob("*.yaml")):
                    raise ShunterError(
                        "no folder with tasks of lm-eval (*.yaml)",
                        where=str(base / task.path),
                        mend=f"Correct the path of the task {label(task)!r}.",
                    )
        return []

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        config = node.config
        assert isinstance(config, EvaluateConfig)
        asked = {
            f"tasks.{i}.max_new_tokens": task.max_new_tokens
            for i, task in enumerate(config.tasks)
            if isinstance(task, ExactMatchTask | VerifiedTask)
        }
        return contexts.check(graph, node, "models", asked)

    def reads(self, config: EvaluateConfig, base: Path) -> Sequence[Path]:
        found: list[Path] = []
        for task in config.tasks:
            if isinstance(task, MultipleChoiceTask) and task.path is not None:
                from shunter.evaluate.choices import from_file

                from_file(base / task.path, task.prompt)  # a missing file is named here
                found.append(base / task.path)
            elif isinstance(task, VerifiedTask):
                found += taught.reads(task.rewards, base)
            elif isinstance(task, LmEvalTask):
                files = (path for path in (base / task.path).rglob("*") if path.is_file())
                found += sorted(path for path in files if path.suffix != ".pyc")
        return list(dict.fromkeys(found))

    def run(self, context: JobContext[EvaluateConfig]) -> dict[str, Any]:
        if context.config.unseen == "locked":
            return _publish(context, {})
        work = _Work(context)
        models = context.many("models")
        results = {model.name: work.model(number, model) for number, model in enumerate(models)}
        return _publish(context, results)


class _Work:
    """Scores one model after another; each finished task of a model is kept for the next attempt."""

    def __init__(self, context: JobContext[EvaluateConfig]) -> None:
        from shunter.evaluate.heldout import HeldOut

        self.context, self.config = context, context.config
        text = any(_needs_text(task) for task in self.config.tasks)
        self.held = HeldOut(context.one("tokens").path) if text else None
        self.folder = context.work / "done"
        self.folder.mkdir(parents=True, exist_ok=True)

    def model(self, number: int, model: Artefact) -> list[dict[str, Any]]:
        """The result of each task, in the order of the configuration."""
        from shunter.evaluate import subject as subjects
        from shunter.train.device import choose_device

        subject: Subject | None = None
        results = []
        for index, task in enumerate(self.config.tasks):
            path = self.folder / f"{number}-{index}.json"
            if (before := disk.read_json(path)) is not None:
                results.append(before)
                continue
            if subject is None:
                other = self.context.one("tokens").path / "tokenizer" if self.config.tokens else None
                device = choose_device(self.config.how.device)
                subject = subjects.load(model.name, model.path, other, device)
            with self.context.events.span("task", model=model.name, task=label(task)):
                result = self._task(task, subject, self._tick(number, index))
            disk.write_json(path, result)
            if problem := result.get("problem"):
                self.context.events.write("problem", problem=problem)
            results.append(result)
            for score in result.get("scores", []):
                self.context.events.write("score", model=model.name, **score)
        return results

    def _task(self, task: Task, subject: Subject, tick: Tick) -> dict[str, Any]:
        from shunter.evaluate import bits_per_byte, choices, exact_match, multiple_choice, samples

        seed = self.config.seed
        if isinstance(task, BitsPerByteTask):
            assert self.held is not None
            return bits_per_byte.run(task, subject, self.held, seed, tick)
        if isinstance(task, ExactMatchTask):
            return exact_match.run(task, subject, self.context.one("conversations").path, seed, tick)
        if isinstance(task, VerifiedTask):
            from shunter.evaluate import verified

            grader = taught.grader(task.rewards, self.context, subject.device, patient=True)
            try:
                folder = self.context.one("conversations").path
                return verified.run(task, subject, folder, grader, seed, tick)
            finally:
                grader.close()
        if isinstance(task, MultipleChoiceTask):
            found = choices.of(task, self.context.base, self.held, seed)
            return multiple_choice.run(task.name, subject, found, tick)
        if isinstance(task, LmEvalTask):
            from shunter.evaluate import lm_eval

            return lm_eval.run(task, subject, self.context.base, seed, tick)
        return samples.run(task, subject, samples.prompts_of(task, self.held, seed), seed, tick)

    def _tick(self, number: int, index: int) -> Tick:
        """Tells progress in percent of the job, as if each task took equally long."""
        count = len(self.config.tasks)
        model, task = self.context.many("models")[number].name, label(self.config.tasks[index])
        total = 100 * len(self.context.many("models")) * count

        def tick(done: int, out_of: int, unit: str) -> None:
            points = 100 * (number * count + index) + 100 * done // max(out_of, 1)
            shown = {unit: f"{done}/{out_of}"}
            self.context.events.progress(
                100 * points // total, 100, "percent", task=f"{model} {task}", **shown
            )
            if self.context.control.stop_requested():
                raise Stopped

        return tick


def _needs_text(task: Task) -> bool:
    """Whether a task works on the held-out documents."""
    if isinstance(task, MultipleChoiceTask):
        return task.derived is not None
    return isinstance(task, BitsPerByteTask) or (isinstance(task, SamplesTask) and not task.prompts)


def _publish(context: JobContext[EvaluateConfig], results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Write the three files; returns the first score of each task and model."""
    models: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for model, parts in results.items():
        tasks = models.setdefault(model, {"tasks": {}})["tasks"]
        for part in parts:
            for number, score in enumerate(part.get("scores", [])):
                key = score["task"] if score["task"] not in tasks else f"{score['task']} {score['metric']}"
                tasks[key] = score
                if number == 0:
                    metrics[f"{model} {score['task']}"] = score["value"]
    problems = list(
        dict.fromkeys(p["problem"] for parts in results.values() for p in parts if "problem" in p)
    )
    scores: dict[str, Any] = {
        "format": FORMAT,
        "models": models,
        "comparisons": list(_comparisons(context, results)),
    }
    if context.config.unseen == "locked":
        problems.append(f"locked: set jobs.{context.name}.unseen=final when all is decided")
    if problems:
        scores["problems"] = problems
    text = json.dumps(scores, indent=1, ensure_ascii=False)
    (context.out / "scores.json").write_text(text + "\n", encoding="utf-8")
    for name in ("items", "samples"):
        with (context.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for model, parts in results.items():
                for line in (line for part in parts for line in part.get(name, [])):
                    file.write(json.dumps({"model": model, **line}, ensure_ascii=False) + "\n")
    return metrics


def _comparisons(
    context: JobContext[EvaluateConfig], results: dict[str, list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Each other model against the first, for every task that has items."""
    from shunter.evaluate.paired import compare_items

    if not results:
        return
    first, *others = results
    for other in others:
        for a, b in zip(results[first], results[other], strict=True):
            # One entry of lm-eval may hold several of its tasks.
            for name in dict.fromkeys(item["task"] for item in a.get("items", [])):
                sides = ([item for item in side["items"] if item["task"] == name] for side in (a, b))
                found = compare_items(*sides, seed=context.config.seed)
                yield {"task": name, "a": first, "b": other, **found}


JOB = EvaluateJob()
