"""From the first step to the last: data, step, validation, checkpoints, records, requests to stop."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shunter.config.errors import ShunterError
from shunter.data.tokens import Batch, TokenRows
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.recipe.job import Control, Stopped
from shunter.record.events import EventLog
from shunter.record.track import open_trackers
from shunter.train.checkpoint.lifecycle import Checkpointer
from shunter.train.config import TrainConfig, TrainHow
from shunter.train.device import (
    choose_device,
    choose_precision,
    memory_mib,
    peak_flops,
    set_determinism,
)
from shunter.train.objective import Objective
from shunter.train.schedule import rate
from shunter.train.session import Session
from shunter.train.spikes import SpikeDetector
from shunter.train.step import StepResult, train_step
from shunter.train.validation import validate

# What a caller wants to know at each validation besides the loss: `(step, tokens) -> metrics`.
Milestone = Callable[[int, int], Mapping[str, float]]


@dataclass(frozen=True)
class Place:
    """Where a training writes and whom it listens to.

    work: survives a kill; checkpoints stand in it.  log: published beside the result.
    """

    name: str
    work: Path
    log: Path
    events: EventLog
    control: Control


class Training:
    """One optimisation of a decoder on rows of tokens. `run` continues where an earlier attempt was."""

    def __init__(
        self,
        decoder: Decoder,
        objective: Objective,
        rows: TokenRows,
        heldout: TokenRows | None,
        config: TrainConfig,
        how: TrainHow,
        place: Place,
        *,
        seed: int,
        milestone: Milestone | None = None,
    ) -> None:
        self.decoder, self.objective, self.rows, self.heldout = decoder, objective, rows, heldout
        self.config, self.how, self.place, self.seed = config, how, place, seed
        self.milestone = milestone
        self.device = choose_device(how.device)
        self.precision = choose_precision(config.precision, self.device)
        decoder.to(self.device)
        self.checkpointer = Checkpointer(place.work / "checkpoints", how.keep)
        self.session = Session.fresh(decoder, config, rows, seed)
        self.spikes = SpikeDetector()
        self.ledger = EventLog(place.log / "ledger.jsonl", attempt=place.events.attempt)
        self.model: torch.nn.Module = decoder

    def run(self) -> dict[str, Any]:
        """Train to the last step; returns headline numbers. Raises Stopped after saving on request."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.how.threads or len(os.sched_getaffinity(0)))
        set_determinism(self.how.deterministic)
        meter: _Meter | None = None
        try:
            self._resume()
            if self.how.compile:
                self.model = torch.compile(self.decoder)  # type: ignore[assignment]
            meter = _Meter(self)
            summary: dict[str, Any] = {}
            while self.session.step < self.config.steps:
                self._heed_requests()
                self._planned_restart()
                result, seen = self._step()
                meter.add(result, seen)
                done = self.session.step == self.config.steps
                if done or (
                    self.config.validate_every and self.session.step % self.config.validate_every == 0
                ):
                    summary = self._validate(meter)
                if done or self.session.step % self.how.checkpoint_every == 0:
                    self.session.save(self.checkpointer)
            if not summary:  # killed between the last checkpoint and publication
                summary = self._validate(meter)
            return {**summary, **meter.summary()}
        finally:
            if meter is not None:
                meter.close()
            self.ledger.close()
            torch.set_num_threads(threads)
            set_determinism(False)

    def _resume(self) -> None:
        latest = self.checkpointer.latest()
        for problem in self.checkpointer.problems:
            self.place.events.write("problem", problem=problem)
        facts = {"device": _name(self.device), "threads": torch.get_num_threads()}
        if latest is not None:
            before = self.session.load(self.checkpointer, latest)
            self.spikes.seam(latest, "restart")
            self.place.events.write("resume", step=latest)
            # `auto` was decided when the run began; another machine must not change what is computed.
            self.precision = before.get("precision", self.precision)
            if changed := {k: [before.get(k), v] for k, v in facts.items() if before.get(k) != v}:
                self.spikes.seam(latest, "hardware")
                self.place.events.write("hardware", step=latest, changed=changed)
        self.session.facts = {**facts, "precision": self.precision}

    def _heed_requests(self) -> None:
        if self.place.control.stop_requested():
            self.session.save(self.checkpointer)
            self.place.events.write("saved", step=self.session.step, why="stop")
            raise Stopped
        if self.place.control.take_save_request():
            self.session.save(self.checkpointer)
            self.place.events.write("saved", step=self.session.step, why="request")

    def _planned_restart(self) -> None:
        """Save, forget, restore as configured. Killed before the next checkpoint, it happens again."""
        plan, session = self.config.restart, self.session
        if plan is None or session.restarted or session.step != plan.at:
            return
        session.save(self.checkpointer)
        init_weights(self.decoder, self.seed)  # what is not restored must be seen to be gone
        self.session = Session.fresh(self.decoder, self.config, self.rows, self.seed)
        self.session.load(self.checkpointer, plan.at, plan.restore)
        self.session.restarted, self.session.facts = True, session.facts
        self.spikes.seam(plan.at, "restart")
        self.place.events.write("restart", step=plan.at, restore=plan.restore)

    def _rate(self) -> float:
        session, plan = self.session, self.config.restart
        value = rate(self.config, session.step - session.schedule_origin)
        if plan is not None and session.restarted and session.step < plan.at + plan.rewarm:
            value *= (session.step - plan.at + 1) / plan.rewarm
        return value

    def _step(self) -> tuple[StepResult, int]:
        session, config = self.session, self.config
        begin = session.loader.position
        ids = session.loader.take(config.batch_rows)
        size = self.how.micro_batch
        batches = [self.rows.rows(ids[i : i + size]) for i in range(0, len(ids), size)]
        result = train_step(
            self.model,
            self.decoder,
            session.optimizers,
            self.objective,
            batches,
            step=session.step,
            rate=self._rate(),
            clip=config.clip,
            device=self.device,
            precision=self.precision,
            z_loss=config.z_loss,
        )
        number = session.step
        session.step += 1
        session.tokens += result.tokens
        # The ledger proves what was learnt from, each position once; the order follows from the seed.
        self.ledger.write(
            "step",
            step=number,
            position=[begin, session.loader.position],
            rows=f"{zlib.crc32(ids.tobytes()):08x}",
            tokens=result.tokens,
            loss=result.loss,
            grad_norm=result.grad_norm,
        )
        if not result.updated:
            self._skipped(number, ids.tolist(), result)
        elif spike := self.spikes.look(number, result.loss, result.grad_norm, ids.tolist()):
            self.place.events.write("spike", **spike)
        return result, sum(_real(batch) for batch in batches)

    def _skipped(self, step: int, ids: list[int], result: StepResult) -> None:
        skipped = self.session.skipped
        skipped.append({"step": step, "rows": ids})
        documents = {row: self.rows.documents_of(row)[:4] for row in ids[:4]}
        self.place.events.write(
            "skip", step=step, loss=result.loss, grad_norm=result.grad_norm, rows=ids, documents=documents
        )
        if len(skipped) > self.config.max_skipped:
            named = "; ".join(f"row {row}: {', '.join(names)}" for row, names in documents.items())
            raise ShunterError(
                f"loss or gradient was not finite in {len(skipped)} steps, last in step {step} ({named})",
                where=self.place.name,
                mend="Look at these documents, lower train.lr, or raise train.max_skipped.",
            )

    def _validate(self, meter: _Meter) -> dict[str, Any]:
        """Metrics on held-out rows, written to the log; the lowest loss is remembered."""
        values: dict[str, float] = {}
        if self.heldout is not None and self.heldout.num_rows:
            count = min(self.config.validate_rows, self.heldout.num_rows)
            loss, bits = validate(
                self.decoder, self.heldout, count, self.how.micro_batch, self.device, self.precision
            )
            values = {"valid/loss": loss}
            if self.heldout.mask is None:  # else the targets are a part of the text only
                values["valid/bits_per_byte"] = bits
            best = self.session.best
            self.session.best = loss if best is None else min(best, loss)
        if self.milestone is not None:
            values.update(self.milestone(self.session.step, self.session.tokens))
        if values:
            meter.record(values)
        return {name.replace("valid/", "heldout_"): value for name, value in values.items()}


class _Meter:
    """Means between two lines of the log, throughput without validation, and the trackers."""

    def __init__(self, training: Training) -> None:
        self.training = training
        how, place = training.how, training.place
        spec = training.decoder.spec
        self.flops = spec.flops_per_token(training.rows.row_length)
        self.peak = peak_flops(training.device, training.precision)
        config = training.config.model_dump(mode="json")
        self.tracker = open_trackers(how.track, place.log / "track", place.name, config)
        self.nats = self.tokens = self.norm = 0.0
        self.steps = 0
        self.seen = self.total_seen = 0
        self.seconds = self.total_seconds = 0.0
        self.last = math.nan
        self._clock = time.perf_counter()

    def add(self, result: StepResult, seen: int) -> None:
        """Count a step of `seen` tokens (padding left out); log and show at the configured interval."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now
        self.seen += seen
        if result.updated:
            self.nats += result.loss * result.tokens
            self.tokens += result.tokens
            self.norm = max(self.norm, result.grad_norm)
        self.steps += 1
        session = self.training.session
        if session.step % self.training.how.log_every == 0 or session.step == self.training.config.steps:
            self._log()
        shown = {"loss": self.last} if math.isfinite(self.last) else {}
        if self.total_seconds:
            shown["tokens/s"] = self.total_seen / self.total_seconds
            shown["GFLOP/s"] = self.flops * shown["tokens/s"] / 1e9
        shown["MiB"] = memory_mib(self.training.device)
        self.training.place.events.progress(session.step, self.training.config.steps, "steps", **shown)

    def record(self, values: Mapping[str, float]) -> None:
        """Write metrics of the present step; the time that they took is not the steps'."""
        step = self.training.session.step
        self.training.place.events.metrics(step, **values)
        self.tracker.metrics(step, values)
        self._clock = time.perf_counter()

    def summary(self) -> dict[str, Any]:
        """Numbers on this attempt's steps and on the whole session."""
        session = self.training.session
        speed = self.total_seen / self.total_seconds if self.total_seconds else 0.0
        return {
            "loss": self.last,
            "tokens": session.tokens,
            "tokens_per_second": speed,
            "mfu": speed * self.flops / self.peak,
            "skipped": len(session.skipped),
            "parameters": self.training.decoder.spec.num_parameters,
        }

    def close(self) -> None:
        self.tracker.close()

    def _log(self) -> None:
        speed = self.seen / max(self.seconds, 1e-9)
        self.last = self.nats / self.tokens if self.tokens else math.nan
        self.total_seen += self.seen
        self.total_seconds += self.seconds
        session = self.training.session
        self.record(
            {
                "train/loss": self.last,
                "train/grad_norm": self.norm,
                "train/lr": rate(self.training.config, session.step - 1 - session.schedule_origin),
                "train/tokens_per_second": speed,
                "train/mfu": speed * self.flops / self.peak,
                "train/memory_mib": memory_mib(self.training.device),
                "train/tokens": session.tokens,
            }
        )
        self.nats = self.tokens = self.norm = self.seconds = 0.0
        self.steps = self.seen = 0


def _real(batch: Batch) -> int:
    """Tokens that are not padding."""
    return int((batch.segments >= 0).sum())


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
