"""Tiny job kinds that stand for real ones, and a script that runs them in a process of its own.

python -m tests.recipe.fakes RECIPE STORE [--kill POINT[:JOB]] [--full POINT[:JOB]] [--from ...]
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.recipe.artefact import Artefact
from shunter.recipe.job import How, Input, JobConfig, JobContext, Stopped
from shunter.record import points


class FakeHow(How):
    threads: int = Field(1, ge=1, description="How many threads.")


class Part(Config):
    """A nested model with an input."""

    of: Annotated[str, Input("text", "model")] = Field(description="Input.")
    weight: float = Field(1.0, description="Weight.")


class SourceConfig(JobConfig):
    files: list[str] = Field(default_factory=list, description="Files to read.")
    text: str = Field("", description="Text.")
    how: FakeHow = Field(default_factory=FakeHow, description="How.")


class TrainConfig(JobConfig):
    text: Annotated[str, Input("text")] = Field(description="Input.")
    start: Annotated[str | None, Input("model")] = Field(None, description="Optional input.")
    steps: int = Field(5, ge=0, description="Steps.")
    lr: float = Field(0.1, gt=0, description="Learning rate.")
    how: FakeHow = Field(default_factory=FakeHow, description="How.")


class ScoreConfig(JobConfig):
    models: Annotated[list[str], Input("model")] = Field(min_length=1, description="Inputs.")
    text: Annotated[str | None, Input("text")] = Field(None, description="Input.")
    parts: list[Part] = Field(default_factory=list, description="Nested inputs.")


class Source:
    """Copies files and text."""

    kind: ClassVar[str] = "source"
    produces: ClassVar[str] = "text"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = SourceConfig

    def check(self, config: SourceConfig, base: Path) -> Sequence[str]:
        if config.text == "warn":
            return ["a warning"]
        if config.text == "refuse":
            raise ShunterError("this text is refused", mend="Write another.")
        return []

    def reads(self, config: SourceConfig, base: Path) -> Sequence[Path]:
        for name in config.files:
            if not (base / name).exists():
                raise ShunterError("file not found", where=name)
        return [base / name for name in config.files]

    def run(self, context: JobContext[SourceConfig]) -> dict[str, Any]:
        text = context.config.text + "".join((context.base / n).read_text() for n in context.config.files)
        (context.out / "part").mkdir()
        (context.out / "part" / "text.txt").write_text(text)
        return {"characters": len(text)}


class Train:
    """Counts steps; each is a line of a file in `work`, which a later attempt continues."""

    kind: ClassVar[str] = "train"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = TrainConfig

    def check(self, config: TrainConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[TrainConfig]) -> dict[str, Any]:
        state = context.work / "state.txt"
        done = len(state.read_text()) if state.exists() else 0
        first = done
        while done < context.config.steps:
            points.reach("train.step", job=context.name, step=done)
            if context.control.stop_requested():
                raise Stopped
            with state.open("a") as file:
                file.write("x")
            done += 1
            context.events.metrics(done, **{"train/loss": 1.0 / done})
        text = context.one("text").path / "part" / "text.txt"
        (context.out / "model.txt").write_text(f"{text.read_text()} {context.config.lr} {'x' * done}")
        return {"steps": done, "first": first}


class Score:
    """Joins the models' texts."""

    kind: ClassVar[str] = "score"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = ScoreConfig

    def check(self, config: ScoreConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[ScoreConfig]) -> dict[str, Any]:
        models = context.many("models")
        text = "\n".join(f"{m.name} {(m.path / 'model.txt').read_text()}" for m in models)
        (context.out / "scores.txt").write_text(text)
        return {"models": len(models)}


KINDS: dict[str, Any] = {"source": Source(), "train": Train(), "score": Score()}

CHAIN = """\
version: 1
name: chain
jobs:
  corpus: {kind: source, text: hello}
  base: {kind: train, text: corpus}
  scores: {kind: score, models: [base]}
"""


def write(folder: Path, text: str = CHAIN, name: str = "recipe.yaml") -> Path:
    """A recipe file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def contents(made: dict[str, Artefact]) -> dict[str, str]:
    """Content digests by job."""
    return {name: artefact.content for name, artefact in made.items()}


def fault(kind: str, spec: str) -> points.Hook:
    """A hook that kills this process, or finds the disk full, at `point`, `point:job` or `point:job:step`."""
    wanted, job, step = (*spec.split(":"), "", "")[:3]

    def hook(point: str, facts: dict[str, Any]) -> str | None:
        if point == wanted and job in ("", facts.get("job")) and step in ("", str(facts.get("step"))):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            elif kind == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            else:  # a handshake: say that the point is reached, wait for a line
                print(f"at {point}", flush=True)
                sys.stdin.readline()
        return None

    return hook


def main() -> int:
    from shunter.recipe.control import RunStopped
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store

    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("store")
    for kind in ("kill", "full", "stop", "wait"):
        parser.add_argument(f"--{kind}")
    parser.add_argument("--redo", action="append", default=[])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    for kind in ("kill", "full", "stop", "wait"):
        if spec := getattr(options, kind):
            points.install(fault(kind, spec))
    try:
        graph = load_recipe(options.recipe, options.overrides, KINDS)
        run_graph(graph, Store(options.store), redo=options.redo)
    except ShunterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunStopped as stop:
        return stop.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
