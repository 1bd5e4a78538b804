"""Means between two lines of the log, throughput of the steps alone, and the trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from shunter.models.moe import expert_load
from shunter.record.track import open_trackers
from shunter.train.device import memory_mib, peak_flops
from shunter.train.step import StepResult

if TYPE_CHECKING:
    from shunter.train.loop import Training


@dataclass
class Work:
    """What steps have done, and how many of them.

    tokens: those that are not padding.  flops: see `batch_flops`.  seconds: inside steps only, neither
    validation nor checkpoints.  possible: FLOP that the devices could have done in these seconds.
    """

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    possible: float = 0.0
    steps: int = 0

    def add(self, other: Work) -> None:
        self.tokens += other.tokens
        self.flops += other.flops
        self.seconds += other.seconds
        self.possible += other.possible
        self.steps += other.steps

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mfu(self) -> float:
        return self.flops / self.possible if self.possible else 0.0


@dataclass
class Tally:
    """Sums since the last line of the log, and since the run began.

    A part of the session: an interruption leaves no mark in the metrics, and a run that was killed
    before its publication still knows them.
    """

    nats: float = 0.0
    z_nats: float = 0.0
    targets: int = 0
    norm: float = 0.0  # the largest
    recent: Work = field(default_factory=Work)
    total: Work = field(default_factory=Work)  # without `recent`
    loss: float | None = None  # in the last line that had one, nats/token

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Tally:
        """From `state`; a checkpoint from before there was one gives an empty tally."""
        works = {name: Work(**state.get(name, {})) for name in ("recent", "total")}
        return cls(**{**state, **works})

    def new_line(self) -> None:
        """Begin the sums of the next line of the log."""
        self.total.add(self.recent)
        self.recent = Work()
        self.nats = self.z_nats = self.norm = 0.0
        self.targets = 0


class Meter:
    """Counts the steps of one attempt into the session's tally, and writes the log."""

    def __init__(self, training: Training) -> None:
        self.training = training
        how, place = training.how, training.place
        # Of all ranks together: the tokens counted are those of all.
        ranks = 1 if training.layout is None else training.layout.world.size
        self.peak = ranks * peak_flops(training.device, training.precision)
        config = training.config.model_dump(mode="json")
        self.tracker = open_trackers(how.track, place.log / "track", place.name, config)
        self.attempt = Work()
        self._clock = time.perf_counter()

    def begin(self) -> None:
        """A step begins: what was done since the last one ended is not a step's time."""
        self._clock = time.perf_counter()

    def add(self, result: StepResult, tokens: int, flops: float) -> None:
        """Count a step of `tokens` real tokens; log and show at the configured interval."""
        seconds = time.perf_counter() - self._clock
        work = Work(tokens, flops, seconds, seconds * self.peak, 1)
        training, tally = self.training, self.training.session.tally
        tally.recent.add(work)
        self.attempt.add(work)
        if result.updated:
            tally.nats += result.loss * result.tokens
            tally.z_nats += result.z_loss * result.tokens
            tally.targets += result.tokens
            tally.norm = max(tally.norm, result.grad_norm)
        step, steps = training.session.step, training.config.steps
        if step % training.how.log_every == 0 or step == steps:
            self._log(result)
        shown = {} if tally.loss is None else {"loss": tally.loss}
        shown["tokens/s"] = self.attempt.tokens_per_second
        shown["GFLOP/s"] = self.attempt.flops / max(self.attempt.seconds, 1e-9) / 1e9
        shown["MiB"] = memory_mib(training.device)
        training.place.events.progress(step, steps, "steps", **shown)

    def record(self, values: Mapping[str, float]) -> None:
        """Write metrics of the present step."""
        step = self.training.session.step
        self.training.place.events.metrics(step, **values)
        self.tracker.metrics(step, values)

    def summary(self) -> dict[str, Any]:
        """Headline numbers of the whole run, over all its attempts."""
        session, spec = self.training.session, self.training.decoder.spec
        tally = session.tally
        return {
            "loss": math.nan if tally.loss is None else tally.loss,
            "tokens": session.tokens,
            "tokens_per_second": tally.total.tokens_per_second,
            "mfu": tally.total.mfu,
            "skipped": len(session.skipped),
            "parameters": spec.num_parameters,
            **({} if spec.experts is None else {"active_parameters": spec.active_parameters}),
        }

    def close(self) -> None:
        self.tracker.close()

    def _log(self, last: StepResult) -> None:
        session, tally = self.training.session, self.training.session.tally
        loss = tally.nats / tally.targets if tally.targets else math.nan
        values = {
            "train/loss": loss,
            "train/grad_norm": tally.norm,
            "train/lr": last.rate,
            "train/tokens_per_second": tally.recent.tokens_per_second,
            "train/step_seconds": tally.recent.seconds / max(tally.recent.steps, 1),
            "train/mfu": tally.recent.mfu,
            "train/memory_mib": memory_mib(self.training.device),
            "train/tokens": session.tokens,
        }
        if self.training.config.z_loss:
            values["train/z_loss"] = tally.z_nats / tally.targets if tally.targets else math.nan
        values |= expert_load(self.training.decoder)  # of the last step alone
        if math.isfinite(loss):
            tally.loss = loss
        tally.new_line()
        self.record(values)
