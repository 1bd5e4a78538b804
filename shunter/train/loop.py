"""From the first step to the last: data, step, validation, checkpoints, records, requests to stop."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shunter.config.errors import ShunterError
from shunter.data.tokens import TokenRows
from shunter.models.decoder import Decoder
from shunter.models.init import draw, init_weights
from shunter.models.uncompiled import compiling
from shunter.parallel.mesh import Peers
from shunter.parallel.part import Fill
from shunter.recipe.job import Control, Stopped
from shunter.record.events import EventLog
from shunter.train.checkpoint.lifecycle import Checkpointer
from shunter.train.checkpoint.shared import SharedCheckpointer
from shunter.train.config import TrainConfig, TrainHow
from shunter.train.device import (
    choose_device,
    choose_precision,
    compile_within,
    prepare_determinism,
    set_determinism,
)
from shunter.train.dropping import Dropping
from shunter.train.flops import batch_flops, trained_share
from shunter.train.layout_check import check_dropout
from shunter.train.meter import Meter
from shunter.train.objective import Objective
from shunter.train.passes import OnePass, Passes
from shunter.train.pipeline import LaidOutPasses
from shunter.train.recording import Peak, Recording, keep
from shunter.train.schedule import rate
from shunter.train.session import Session
from shunter.train.shares import noised_batches, split
from shunter.train.step import StepResult, train_step
from shunter.train.validation import validate
from shunter.train.world import Shared, World

RECORD = 100  # steps between those that are recorded, in a training by a plan

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
        world: World | None = None,
        fill: Fill | None = None,
    ) -> None:
        """fill: gives a decoder on the meta device its first values, by name; without it they are drawn."""
        self.decoder, self.objective, self.rows, self.heldout = decoder, objective, rows, heldout
        self.config, self.how, self.place, self.seed = config, how, place, seed
        self.milestone = milestone
        check_dropout(config.dropout, decoder.spec)
        self.trained = trained_share(decoder)
        self.device = choose_device(how.device) if world is None else world.device
        if how.deterministic:
            prepare_determinism(self.device)
        self.precision = choose_precision(config.precision, self.device)
        checkpoints = place.work / "checkpoints"
        self.layout: LaidOutPasses | None = None
        self.checkpointer: Checkpointer
        if world is not None and how.parallel is not None:
            # Before the optimizer is made: it belongs to the parameters that stay here.
            parallel = how.parallel.settled(config.batch_rows, how.micro_batch)
            most = math.ceil(config.batch_rows / (parallel.data * parallel.parts))  # rows of a micro-batch
            self.layout = LaidOutPasses(
                decoder,
                parallel,
                world,
                rows.row_length,
                fill or partial(draw, seed=seed),
                rows=most,
                precision=self.precision,
                compiled=how.compile,
                optimizer=config.optimizer,
            )
            self.checkpointer = SharedCheckpointer(
                checkpoints,
                how.keep,
                world,
                self.layout.part.held,
                self.layout.elsewhere,
                beside=how.checkpoint_async,
                kept=self.layout.part.kept,
            )
        else:
            decoder.to(self.device)
            self.checkpointer = Checkpointer(checkpoints, how.keep)
        if isinstance(place.control, Shared):
            place.control.more = self.checkpointer.landed
        part = None if self.layout is None else self.layout.part
        self.session = Session.fresh(decoder, config, rows, seed, part)
        self.ledger = EventLog(place.log / "ledger.jsonl", attempt=place.events.attempt)
        self._first = 0  # step at which this attempt begins
        self.passes: Passes  # laid out when the run begins: a checkpoint may have decided the precision

    def run(self) -> dict[str, Any]:
        """Train to the last step; returns headline numbers. Raises Stopped after saving on request, and
        ShunterError when the model's loss is not finite at the end."""
        threads = torch.get_num_threads()
        # Of ranks on one machine each has its share of the cores, which their launcher has told them.
        share = threads if self.layout is not None else len(os.sched_getaffinity(0))
        torch.set_num_threads(self.how.threads or share)
        set_determinism(self.how.deterministic)
        compile_within(self.how.compile_memory)
        meter: Meter | None = None
        try:
            self._resume()
            self.passes, self._first = self._lay_out(), self.session.step
            meter = Meter(self)
            while self.session.step < self.config.steps:
                self._heed_requests()
                self._planned_restart()
                self._step(meter)
                done = self.session.step == self.config.steps
                every = self.config.validate_every
                if done or (every and self.session.step % every == 0):
                    values = self._validate(meter)
                    if done:
                        self.session.final = values
                if done or self.session.step % self.how.checkpoint_every == 0:
                    self._save(later=self.how.checkpoint_async and not done)
            if self.session.final is None:  # refused just now or before, or an older checkpoint
                self.session.final = self._validate(meter)
            if self.session.final is None:
                raise ShunterError(
                    "the loss of the trained model is not finite, so it is not published",
                    where=self.place.name,
                    mend="Lower train.lr, or lengthen train.warmup. The checkpoints stay until "
                    "`shunter gc` removes them.",
                )
            return {**self.session.final, **meter.summary()}
        except BaseException:
            with suppress(Exception):  # what is being saved may still be published; the first error counts
                self.checkpointer.wait()
            raise
        finally:
            if meter is not None:
                meter.close()
            self.ledger.close()
            torch.set_num_threads(threads)
            set_determinism(False)

    def _lay_out(self) -> Passes:
        if self.layout is not None:
            self.layout.precision = self.precision
            return self.layout
        model: Any = self.decoder
        if self.how.compile:
            compiling()
            model = torch.compile(model)
        return OnePass(model, self.decoder, self.device, self.precision)

    def _resume(self) -> None:
        latest = self.checkpointer.latest()
        for problem in self.checkpointer.problems:
            self.place.events.write("problem", problem=problem)
        facts = {"device": _name(self.device), "threads": torch.get_num_threads()}
        if latest is not None:
            before = self.session.load(self.checkpointer, latest)
            self.session.spikes.seam(latest, "restart")
            self.place.events.write("resume", step=latest)
            # `auto` was decided when the run began; another machine must not change what is computed.
            self.precision = before.get("precision", self.precision)
            if changed := {k: [before.get(k), v] for k, v in facts.items() if before.get(k) != v}:
                self.session.spikes.seam(latest, "hardware")
                self.place.events.write("hardware", step=latest, changed=changed)
        self.session.facts = {**facts, "precision": self.precision}

    def _heed_requests(self) -> None:
        control = self.place.control
        stop = control.stop_requested()
        self.checkpointer.look(control.answer if isinstance(control, Shared) else None)
        if stop:
            self._save()
            self.place.events.write("saved", step=self.session.step, why="stop")
            raise Stopped
        if self.place.control.take_save_request():
            self._save()
            self.place.events.write("saved", step=self.session.step, why="request")

    def _save(self, *, later: bool = False) -> None:
        self.session.save(self.checkpointer, later=later)
        kept = self.checkpointer
        self.place.events.write(
            "checkpoint", step=self.session.step, blocked=kept.blocked, staging_bytes=kept.staging.bytes
        )

    def _planned_restart(self) -> None:
        """Save, forget, restore as configured. Killed before the next checkpoint, it happens again."""
        plan, session = self.config.restart, self.session
        if plan is None or session.restarted or session.step != plan.at:
            return
        self._save()
        init_weights(self.decoder, self.seed)  # what is not restored must be seen to be gone
        self.session = Session.fresh(self.decoder, self.config, self.rows, self.seed)
        self.session.load(self.checkpointer, plan.at, plan.restore)
        self.session.restarted, self.session.facts = True, session.facts
        self.session.spikes.seam(plan.at, "restart")
        self.place.events.write("restart", step=plan.at, restore=plan.restore)

    def _rate(self) -> float:
        session, plan = self.session, self.config.restart
        value = rate(self.config, session.step - session.schedule_origin)
        if plan is not None and session.restarted and session.step < plan.at + plan.rewarm:
            value *= (session.step - plan.at + 1) / plan.rewarm
        return value

    def _step(self, meter: Meter) -> None:
        session, config = self.session, self.config
        meter.begin()
        begin = session.loader.position
        ids = session.loader.take(config.batch_rows)
        batches = [self.rows.rows(part) for part in self._micro_batches(ids)]
        if config.input_noise:
            batches = noised_batches(
                batches,
                config.input_noise,
                self.decoder.spec.vocab_size,
                session.stream,
                session.step,
                config.batch_rows,
                self._data,
            )
        dropping = None
        if config.dropout is not None:
            rows = [len(batch.tokens) for batch in batches]
            dropping = Dropping.of(
                config.dropout, rows, session.stream, session.step, config.batch_rows, self._data
            )
        recording = self._recording()
        with self._peak():
            result = train_step(
                self.passes,
                session.optimizers,
                self.objective,
                batches,
                step=session.step,
                rate=self._rate(),
                clip=config.clip,
                z_loss=config.z_loss,
                dropping=dropping,
            )
        if recording is not None:
            keep(recording, session.optimizers, session.step, self.place.log, self.place.events)
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
        elif spike := session.spikes.look(number, result.loss, result.grad_norm, ids.tolist()):
            self.place.events.write("spike", **spike)
        seen = sum(int((batch.segments >= 0).sum()) for batch in batches)
        flops = sum(batch_flops(self.decoder.spec, batch, self.trained) for batch in batches)
        tokens, flops = self.passes.total([seen, flops])
        meter.add(result, int(tokens), flops)

    @property
    def _data(self) -> Peers:
        """Ranks that see other rows."""
        return Peers.alone() if self.layout is None else self.layout.world.data

    def _micro_batches(self, ids: np.ndarray) -> list[np.ndarray]:
        if self.layout is not None:
            data = self.layout.world.data
            return split(split(ids, data.size)[data.index], self.layout.order.microbatches)
        plan = self.config.restart
        later = plan.micro_batch if plan is not None and self.session.restarted else None
        size = later or self.how.micro_batch
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def _recording(self) -> Recording | None:
        """Of the step that begins, where it is one to be watched: the one that is asked for, or by a plan the
        third after the start and then one in RECORD, so that the plan can be held to account."""
        parallel, step = self.how.parallel, self.session.step
        if self.layout is None or parallel is None:
            return None
        if parallel.timeline == step or (self._by_plan and (step - self._first) % RECORD == 2):
            return Recording(self.layout)
        return None

    def _peak(self) -> AbstractContextManager[object]:
        """Counts what is alive in the step that begins, the one after the first that is watched."""
        parallel, step = self.how.parallel, self.session.step
        if self.layout is None or parallel is None or self.how.compile:
            return nullcontext()
        asked = parallel.timeline is not None and parallel.timeline + 1 == step
        if not asked and not (self._by_plan and step == self._first + 3):
            return nullcontext()
        return Peak(self.layout, self.session.optimizers, self.session.step, self.place.events)

    @property
    def _by_plan(self) -> bool:
        """Compiled layers run otherwise where every operation is looked at, so that they are not watched
        without being asked for."""
        planned = self.how.parallel is not None and self.how.parallel.plan is not None
        return planned and not self.how.compile

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

    def _validate(self, meter: Meter) -> dict[str, float] | None:
        """Metrics on held-out rows, written to the log; the lowest loss is remembered.

        None when the loss is not finite (without held-out rows, on a micro-batch of training rows): a model
        from which neither an answer nor a sample can be drawn.
        """
        self.decoder.eval()  # no expert drops a token: as the published model will be
        try:
            return self._evaluate(meter)
        finally:
            self.decoder.train()

    def _evaluate(self, meter: Meter) -> dict[str, float] | None:
        values: dict[str, float] = {}
        if self.heldout is not None and self.heldout.num_rows:
            loss, bits = self._loss_on(self.heldout, self.config.validate_rows)
            values = {"valid/loss": loss}
            if self.heldout.mask is None:  # else the targets are a part of the text only
                values["valid/bits_per_byte"] = bits
        else:
            loss, _ = self._loss_on(self.rows, self.how.micro_batch)
        if not (sound := math.isfinite(loss)):
            self.place.events.write("problem", problem="the loss of the model is not finite", loss=loss)
        elif values:
            self.session.best = min(loss, math.inf if self.session.best is None else self.session.best)
        if sound and self.milestone is not None:
            values.update(self.milestone(self.session.step, self.session.tokens))
        if values:
            meter.record(values)
        found = {name.replace("valid/", "heldout_"): value for name, value in values.items()}
        return found if sound else None

    def _loss_on(self, rows: TokenRows, count: int) -> tuple[float, float]:
        count = min(count, rows.num_rows)
        return validate(self.passes, rows, count, self.how.micro_batch)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
