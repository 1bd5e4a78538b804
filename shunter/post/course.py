"""A training by steps that are not rows of tokens: resuming, requests to stop, checkpoints, the log."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from shunter.config.errors import ShunterError
from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.post.batch import Answers, Sample, micro_batches
from shunter.post.config import PostHow, PostTrain
from shunter.post.objective import ScoreObjective
from shunter.post.step import Gradient, ScoredResult, Scorer, scored_step
from shunter.recipe.job import Stopped
from shunter.record.track import open_trackers
from shunter.train.checkpoint.lifecycle import Checkpointer, State
from shunter.train.device import (
    choose_device,
    choose_precision,
    generator_state,
    memory_mib,
    prepare_determinism,
    restore_generator,
    set_determinism,
)
from shunter.train.loop import Place
from shunter.train.optim import Optimizers
from shunter.train.schedule import rate
from shunter.train.world import World

Guard = Callable[[Mapping[str, float]], None]


class Pupil:
    """A model that learns: its weights, its optimizer, and what it says of batches. place: where steps that
    are watched are kept, if any are."""

    place: Place | None = None

    def __init__(
        self,
        decoder: Decoder,
        train: PostTrain,
        device: torch.device,
        *,
        value: nn.Linear | None = None,
        temperature: float = 1.0,
        lr: float | None = None,
    ) -> None:
        """value: a head that learns with the model. lr: instead of the configuration's."""
        decoder.to(device)
        precision = choose_precision(train.precision, device)
        self.scorer = Scorer(decoder, device, precision, value=value, temperature=temperature)
        self.decoder, self.value = decoder, value
        self.module: nn.Module = decoder
        if value is not None:
            value.to(device)
            self.module = nn.ModuleDict({"decoder": decoder, "value": value})
        config = train.plain()
        self.config = config if lr is None else config.model_copy(update={"lr": lr})
        self.optimizers = Optimizers(self.module, self.config)

    def batches(self, units: Sequence[Sequence[Sample]], tokens: int) -> list[Answers]:
        """A step's units in micro-batches of about `tokens` tokens."""
        return micro_batches(units, tokens)

    def learn(
        self,
        objective: ScoreObjective,
        batches: Sequence[Batch],
        step: int,
        guard: Guard | None = None,
        begun: Gradient | None = None,
    ) -> ScoredResult:
        """One update. begun: with the gradient of what is learnt from already."""
        return scored_step(
            self.scorer,
            self.optimizers,
            objective,
            batches,
            step=step,
            rate=rate(self.config, step),
            clip=self.config.clip,
            guard=guard,
            begun=begun,
        )

    def state(self) -> State:
        """The live tensors. Frozen parameters are not among them: they are those that the run began with."""
        model = {
            name: tensor.detach()
            for name, tensor in self.module.state_dict(keep_vars=True).items()
            if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
        }
        return {"model": model, "optimizer": self.optimizers.state()}

    def checkpointer(self, folder: Path, keep: int, pupils: Mapping[str, Pupil]) -> Checkpointer:
        """For a course that teaches these pupils, of which this is one, on all of its ranks."""
        return Checkpointer(folder, keep)


class Lessons(Protocol):
    """What is taught: a step, and where it stands."""

    pupils: Mapping[str, Pupil]

    def step(self, number: int) -> Mapping[str, float]:
        """Do step `number`; returns its metrics. Raises ShunterError for what cannot go on."""

    def state(self) -> dict[str, Any]:
        """All that is not in the pupils, as JSON values. Changes nothing: the checkpoint is not there yet."""

    def saved(self, oldest: int) -> None:
        """A checkpoint is there, and the oldest that is kept is after `oldest` steps."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""


def is_largest(metric: str) -> bool:
    """Whether it is the largest of something: of several steps the largest is told, and not the mean."""
    return "/max_" in metric or "/largest_" in metric


@dataclass
class _Tally:
    """Sums since the last line of the log."""

    sums: dict[str, float]
    counts: dict[str, int]

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):  # in no mean, but seen
                self.sums["train/not_finite"] = self.sums.get("train/not_finite", 0.0) + 1
                self.counts["train/not_finite"] = 1
                continue
            if is_largest(name):
                self.sums[name] = max(self.sums.get(name, -math.inf), value)
                self.counts[name] = 1
            else:
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}


@contextmanager
def placing(job: str, step: int) -> Iterator[None]:
    """An error from inside names the job and the step: an engine, or a role, knows of neither. step: from 1,
    as progress is told."""
    try:
        yield
    except ShunterError as error:
        place = f"{job}, step {step}"
        error.where = place if error.where in (None, job) else f"{place}: {error.where}"
        raise


class Course:
    """Runs lessons to the last step, or continues where an earlier attempt was."""

    def __init__(
        self, train: PostTrain, how: PostHow, place: Place, shown: str, world: World | None = None
    ) -> None:
        """shown: the metric that stands beside the progress. world: the ranks that all do the same."""
        self.train, self.how, self.place, self.shown = train, how, place, shown
        self.world = world
        self.device = choose_device(how.device) if world is None else world.device
        # Of ranks on one machine each has its share of the cores, which their launcher has told them.
        self.threads = how.threads or (
            len(os.sched_getaffinity(0)) if world is None else torch.get_num_threads()
        )
        if how.deterministic:
            prepare_determinism(self.device)
        self.checkpointer = Checkpointer(
            place.work / "checkpoints", how.keep, clean=world is None or world.rank == 0
        )
        self.done = 0
        self.skipped: list[int] = []
        self.tally = _Tally({}, {})

    def run(self, lessons: Lessons) -> None:
        """Raises Stopped after saving on request."""
        if self.world is not None:
            one = next(iter(lessons.pupils.values()))
            folder = self.place.work / "checkpoints"
            self.checkpointer = one.checkpointer(folder, self.how.keep, lessons.pupils)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        set_determinism(self.how.deterministic)
        config = self.train.model_dump(mode="json")
        tracker = open_trackers(self.how.track, self.place.log / "track", self.place.name, config)
        try:
            self._resume(lessons)
            while self.done < self.train.steps:
                self._heed(lessons)
                with placing(self.place.name, self.done + 1):
                    values = lessons.step(self.done)
                self.done += 1
                self.tally.add(values)
                last = self.done == self.train.steps
                if last or self.done % self.how.log_every == 0:
                    means = {**self.tally.means(), "train/memory_mib": memory_mib(self.device)}
                    self.place.events.metrics(self.done, **means)
                    tracker.metrics(self.done, means)
                    self.tally = _Tally({}, {})
                shown = {self.shown.split("/")[-1]: values.get(self.shown, math.nan)}
                self.place.events.progress(self.done, self.train.steps, "steps", **shown)
                if last or self.done % self.how.checkpoint_every == 0:
                    self._save(lessons)
        finally:
            tracker.close()
            torch.set_num_threads(threads)
            set_determinism(False)

    def learnt(self, result: ScoredResult, step: int) -> None:
        """Count a step that changed nothing. Raises ShunterError when there were too many."""
        if result.updated:
            return
        self.skipped.append(step)
        self.place.events.write("skip", step=step, loss=result.loss, grad_norm=result.grad_norm)
        if len(self.skipped) > self.train.max_skipped:
            raise ShunterError(
                f"loss or gradient was not finite in {len(self.skipped)} steps, last in step {step}",
                where=self.place.name,
                mend="Lower train.lr, or raise train.max_skipped.",
            )

    def _save(self, lessons: Lessons) -> None:
        state: State = {name: pupil.state() for name, pupil in lessons.pupils.items()}
        state["rng"] = {"torch": torch.get_rng_state()}
        extra = {
            "lessons": lessons.state(),
            "skipped": self.skipped,
            "tally": [self.tally.sums, self.tally.counts],
            "config": self.train.model_dump(mode="json"),
            "generator": generator_state(self.device),
        }
        self.checkpointer.save(self.done, state, extra)
        lessons.saved(min(self.checkpointer.steps(), default=0))

    def _resume(self, lessons: Lessons) -> None:
        latest = self.checkpointer.latest()
        for problem in self.checkpointer.problems:
            self.place.events.write("problem", problem=problem)
        if latest is None:
            return
        state: State = {name: pupil.state() for name, pupil in lessons.pupils.items()}
        state["rng"] = {"torch": torch.get_rng_state()}
        extra = self.checkpointer.load(latest, state)
        torch.set_rng_state(state["rng"]["torch"])
        restore_generator(self.device, extra.get("generator"))
        self.done, self.skipped = latest, list(extra["skipped"])
        self.tally = _Tally(*extra["tally"])
        lessons.restore(extra["lessons"])
        self.place.events.write("resume", step=latest)

    def _heed(self, lessons: Lessons) -> None:
        if self.place.control.stop_requested():
            self._save(lessons)
            self.place.events.write("saved", step=self.done, why="stop")
            raise Stopped
        if self.place.control.take_save_request():
            self._save(lessons)
            self.place.events.write("saved", step=self.done, why="request")
