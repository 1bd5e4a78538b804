"""From a task's first step to its last: order, steps, evaluation, checkpoints, records, requests to stop."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.parallel.counted import counted
from shunter.parallel.generic.laid import Laid
from shunter.parallel.generic.stored import without_values
from shunter.parallel.told import told_by_all
from shunter.recipe.job import Control, Stopped
from shunter.record.events import EventLog
from shunter.record.points import reach
from shunter.record.track import open_trackers
from shunter.train.checkpoint.shared import SharedCheckpointer
from shunter.train.config import TrainHow
from shunter.train.device import prepare_determinism, set_determinism
from shunter.train.schedule import rate
from shunter.train.task.best import Bests
from shunter.train.task.config import TaskConfig
from shunter.train.task.face import Examples, Task, first, moved
from shunter.train.task.lay import APART, Looking, laid_out
from shunter.train.task.step import Engine, Step, ordinary
from shunter.train.world import World

MODEL = "model.safetensors"
LISTED = 64  # examples of a step whose numbers stand in the log, beside their checksum
MAX_SKIPPED = 10  # steps with a non-finite loss or gradient to endure


@dataclass(frozen=True)
class Place:
    """work: survives a kill; checkpoints stand in it. log: for records."""

    work: Path
    log: Path
    events: EventLog
    control: Control


class TaskRun:
    """One optimisation of a person's task. `run` continues where an earlier attempt was. Every rank of the
    world makes one and calls the same methods."""

    def __init__(
        self, task: Task, config: TaskConfig, how: TrainHow, place: Place, world: World, *, seed: int
    ) -> None:
        self.task, self.config, self.how, self.place, self.world, self.seed = (
            task,
            config,
            how,
            place,
            world,
            seed,
        )
        if how.deterministic:
            prepare_determinism(world.device)
        torch.manual_seed(derive_seed(seed, "model"))
        with without_values() if task.weights is not None else nullcontext():
            module = task.model()
        if not isinstance(module, nn.Module):
            raise ShunterError(f"`model` returns {type(module).__name__}, not a torch module")
        module.train()
        if task.weights is None:
            module.to(world.device)
        self.step = self.epoch = self.within = 0  # steps done; epochs done; examples of this one done
        self.skipped = 0
        self.best: dict[str, float] | None = None  # value, step
        self.examples: Examples = task.train if not task.drawn_anew else ()  # type: ignore[assignment]
        few, apart = first(self.examples, APART), world.data.size > 1 or how.micro_batch < config.batch
        examples = few or first(task.heldout, APART)
        self.laid, dropouts, rows = laid_out(task, module, world, config, examples, seed=seed, cut=apart)
        self.engine = Engine(task, self.laid, world, config, seed=seed, micro_batch=how.micro_batch)
        self.engine.dropouts, self.engine.rows = dropouts, rows
        self.optimizer = _adamw(self.laid, config)
        checkpoints = place.work / "checkpoints"
        self.checkpointer = SharedCheckpointer(checkpoints, how.keep, world, self.laid.held)
        settings = {"train": config.model_dump(mode="json"), "how": how.model_dump(mode="json")}
        names = how.track if world.rank == 0 else []
        self.tracker = open_trackers(names, place.log / "track", place.log.parent.name, settings)
        self.kept = Bests(place.work / "best", 1, world, self.laid.held)
        self.named: list[int] = []  # best steps that the last checkpoints name
        self.saved = 0  # step of the last checkpoint
        self.rollouts = 0  # calls of `predict` for the examples of this epoch

    def run(self) -> dict[str, Any]:
        """Train. Returns headline metrics. Raises Stopped after a stop on request."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.how.threads or threads)
        set_determinism(self.how.deterministic)
        try:
            return self._run()
        finally:
            self.tracker.close()
            torch.set_num_threads(threads)
            set_determinism(False)

    def _run(self) -> dict[str, Any]:
        newest = self.checkpointer.latest()
        for problem in self.checkpointer.problems:
            self.place.events.write("problem", problem=problem)
        if newest is not None:
            self._load(newest)
            self.place.events.write("resume", step=self.step)
        elif self.config.evaluate_first and len(self.task.heldout):
            self._first_try()
        self.place.events.write(
            "task",
            parameters=sum(math.prod(each.piece.shape) for each in self.laid.held.values()),
            here=sum(p.numel() for p in self.laid.parameters.values()),
            bytes_here=self.laid.bytes,
            computed={
                how: sum(v == how for v in self.laid.computed.values())
                for how in set(self.laid.computed.values())
            },
            notes=self.laid.notes,
        )
        for note in self.laid.notes:
            self.place.events.write("note", note=note)
        while self.epoch < self.config.epochs:
            self._epoch()
        return self._finish()

    # --- the order of examples

    def _epoch(self) -> None:
        if self.task.drawn_anew:
            self.rollouts = 0
            self.examples = list(self.task.train(self.epoch, self._rollout))  # type: ignore[operator]
        if not len(self.examples):
            raise ShunterError("there are no examples to train on")
        order = self._order()
        steps = -(-len(self.examples) // self.config.batch)
        while self.within < len(self.examples):
            numbers = order[self.within : self.within + self.config.batch].tolist()
            self._step(numbers, steps * self.config.epochs)
            self.within += len(numbers)
            last = self.within >= len(self.examples)
            if last:
                self.epoch, self.within = self.epoch + 1, 0
            every = self.config.evaluate_every
            if (self.step % every == 0) if every else last:
                self._evaluated()
            # A checkpoint within an epoch that was drawn anew could not be continued: the model has moved.
            here = last or not self.task.drawn_anew
            done = last and self.epoch == self.config.epochs
            every = self.how.checkpoint_every
            due = self.step - self.saved >= every if self.task.drawn_anew else self.step % every == 0
            if here and (due or done):
                self._save()
            if here:
                self._listen()
            if last:
                return

    def _order(self) -> np.ndarray:
        count = len(self.examples)
        if not self.config.shuffle:
            return np.arange(count)
        return np.random.default_rng(derive_seed(self.seed, "order", self.epoch)).permutation(count)

    def _step(self, numbers: Sequence[int], steps: int) -> None:
        reach("train.step", step=self.step)
        examples = [self.examples[number] for number in numbers]
        speed = rate(_Curve(self.config, steps), self.step)
        recorded = self.how.parallel is not None and self.how.parallel.timeline == self.step
        self.engine.forward = Counter() if recorded else None
        with counted() if recorded else nullcontext() as sent:
            if self.task.step is not None:
                if self.laid.mesh.grid.fsdp > 1:
                    raise ShunterError(
                        "`step` needs whole gradients of examples", mend="Use tp or dp, not fsdp."
                    )
                step = Step(self.engine, examples, numbers, self.step, speed, self._update)
                values = {str(k): float(v) for k, v in self.task.step(step).items()}
            else:
                result = ordinary(self.engine, examples, numbers, self.step, speed, self._update)
                values = {"loss": result.loss, "grad_norm": result.norm}
                if not result.updated:
                    self._skipped(result.loss, numbers)
        if sent is not None and self.engine.forward is not None:
            calls: Counter[str] = Counter()
            for (kind, _), count in sent.calls.items():
                calls[kind] += count
            mine = {"bytes": sent.by_kind(), "calls": calls, "forward": self.engine.forward}
            self.engine.forward = None
            every = told_by_all(mine, self.world.mesh.everyone, self.world.device)
            self.place.events.write("traffic", step=self.step, ranks=every)
        self.step += 1
        if self.step % self.how.log_every == 0 or self.step == steps:
            self._record({f"train/{k}": v for k, v in values.items()} | {"lr": speed})
        told = {"numbers": list(numbers)} if len(numbers) <= LISTED else {}
        check = zlib.crc32(np.asarray(numbers, dtype=np.int64).tobytes())
        self.place.events.write("step", step=self.step, rows=f"{check:08x}", **told, **values)
        self.place.events.progress(self.step, steps, "steps", **values)

    def _skipped(self, loss: float, numbers: Sequence[int]) -> None:
        self.skipped += 1
        self.place.events.write("skip", step=self.step, loss=loss, numbers=list(numbers))
        if self.skipped > MAX_SKIPPED:
            raise ShunterError(
                f"loss or gradient was not finite in {self.skipped} steps, last in step {self.step} "
                f"(examples {', '.join(map(str, numbers[:8]))})",
                mend="Look at these examples, or lower train.lr.",
            )

    def _record(self, values: Mapping[str, float]) -> None:
        self.place.events.metrics(self.step, **values)
        self.tracker.metrics(self.step, values)

    def _update(self, speed: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = speed
        self.optimizer.step()

    # --- evaluation

    def _rollout(self, examples: Examples) -> list[Any]:
        """`predict` with random numbers of this moment, for examples of an epoch to come."""
        self.rollouts += 1
        return self.predict(examples, step=self.step, purpose=f"rollout {self.rollouts}")

    def predict(self, examples: Examples, *, step: int = -1, purpose: str = "") -> list[Any]:
        """One output for each example, in their order, on every rank. The last batch is filled up, so that
        batches are of one size, and what fills it is dropped."""
        if self.task.predict is None:
            raise ShunterError("the task has no function `predict`")
        examples = list(examples)
        if not examples:
            return []
        with self.laid.gathered():
            mine = self._predicted(examples, step, purpose)
        try:
            every = told_by_all(mine, self.world.data, self.world.device)
        except TypeError as error:
            raise ShunterError(
                f"an output of `predict` is no number, text, list or mapping ({error})"
            ) from None
        return [output for each in every for output in each]

    def _predicted(self, examples: Examples, step: int, purpose: str) -> list[Any]:
        """Outputs of this rank's share."""
        assert self.task.predict is not None
        size, mine = self.how.micro_batch, []
        for part in self.engine.passes(examples, range(len(examples))):
            filled = part.examples + [part.examples[0]] * (size - len(part.examples))
            numbers = part.numbers + [part.numbers[0]] * (size - len(part.numbers))
            with self._looking(), self.engine.drawing(numbers, step, purpose) as draws:
                batch = moved(self.task.collate(filled), self.world.device)
                outputs = self.task.predict(self.laid.module, batch, draws)
            outputs = outputs.tolist() if isinstance(outputs, Tensor) else list(outputs)
            if len(outputs) != size:
                raise ShunterError(
                    f"`predict` returns {len(outputs)} outputs for {size} examples",
                    mend="Return one for each: a tensor [B, ..], or a list.",
                )
            mine += outputs[: len(part.examples)] if part.counts else []
        return mine

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """The loss on these examples, and what `metrics` makes of the outputs."""
        found: dict[str, float] = {}
        if self.task.loss is not None:
            told = torch.zeros(2, dtype=torch.float64, device=self.world.device)
            with self.laid.gathered():
                for part in self.engine.passes(examples, range(len(examples))):
                    with self._looking():
                        total, count = self.engine.loss(part, -1)
                    told += torch.stack([total.detach(), count])
            total, count = self.world.sum(told, self.world.data).tolist()
            found["loss"] = total / count if count else math.nan
        if self.task.metrics is not None:
            found |= {k: float(v) for k, v in self.task.metrics(examples, self.predict(examples)).items()}
        return found

    def _first_try(self) -> None:
        """One batch through all that evaluation does: better now than after an epoch."""
        few = first(self.task.heldout, self.how.micro_batch * self.world.data.size)
        found = self.evaluate(few)
        self._metric(found)
        self.place.events.write("tried", examples=len(few), **found)

    def _evaluated(self) -> None:
        if not len(self.task.heldout):
            return
        found = self.evaluate(self.task.heldout)
        self._record({f"valid/{k}": v for k, v in found.items()})
        value, best = self._metric(found), self.config.best
        sign = 1 if best.mode == "min" else -1
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best["value"]):
            self.best = {"value": value, "step": float(self.step)}
            self.kept.save(self.step, {"model": self._weights()}, {"metrics": found})

    def _metric(self, found: Mapping[str, float]) -> float:
        if (name := self.config.best.metric) not in found:
            raise ShunterError(
                f"there is no metric {name!r}",
                where="train.best.metric",
                mend=f"Evaluation gives {', '.join(sorted(found)) or 'nothing'}.",
            )
        return found[name]

    def _looking(self) -> Any:
        return Looking(self.laid.module, self.config.precision, self.world.device)

    # --- state

    def _weights(self) -> dict[str, Tensor]:
        """Parameters, and buffers that belong to the model; each by its first name."""
        parameters: dict[str, Tensor] = {name: p.detach() for name, p in self.laid.parameters.items()}
        stored = self.laid.module.state_dict(keep_vars=True)
        known = {id(p) for p in self.laid.parameters.values()}
        return parameters | {
            name: b for name, b in stored.items() if isinstance(b, Tensor) and id(b) not in known
        }

    def _state(self) -> dict[str, Any]:
        names = {id(p): name for name, p in self.laid.parameters.items()}
        optimizer = {names[id(p)]: dict(state) for p, state in self.optimizer.state.items()}
        return {"model": self._weights(), "optimizer": optimizer}

    def _save(self) -> None:
        extra = {
            "step": self.step, "epoch": self.epoch, "within": self.within, "best": self.best,
            "skipped": self.skipped, "config": self.config.model_dump(mode="json"),
            "examples": len(self.examples),
        }  # fmt: skip
        self.checkpointer.save(self.step, self._state(), extra)
        self._named()

    def _named(self) -> None:
        """A checkpoint names the best state as it is now."""
        self.saved = self.step
        self.named = [*self.named, int(self.best["step"])] if self.best is not None else self.named
        self.named = self.named[-self.how.keep :]
        self.kept.spare(self.named)

    def _load(self, step: int) -> None:
        def check(extra: dict[str, Any], where: str) -> None:
            if extra["config"] != self.config.model_dump(mode="json"):
                raise ShunterError("the checkpoint belongs to another configuration", where=where)
            if not self.task.drawn_anew and extra["examples"] != len(self.examples):
                raise ShunterError(
                    f"the run began with {extra['examples']} examples, and there are {len(self.examples)}",
                    where=where,
                )

        extra = self.checkpointer.load(step, self._state(), check)
        self.step, self.epoch, self.within = extra["step"], extra["epoch"], extra["within"]
        self.best, self.skipped = extra["best"], extra["skipped"]
        if self.best is not None and not self.kept.there(int(self.best["step"])):
            self.place.events.write("problem", problem=f"the best state (step {self.best['step']:g}) is gone")
            self.best = None
        self._named()

    def _listen(self) -> None:
        if self.place.control.stop_requested():
            self._save()
            raise Stopped
        if self.place.control.take_save_request():
            self._save()

    def _finish(self) -> dict[str, Any]:
        """The best state, where there is one; else the last."""
        metrics: dict[str, Any] = {"steps": self.step}
        if self.best is not None:
            step = int(self.best["step"])
            if step not in self.kept.steps():
                # A killed attempt was further, and had found a better one, which has taken its place.
                step = self.kept.latest() or step
            state = {"model": self._weights()}
            found = self.kept.load(step, state)
            metrics |= {f"heldout_{k}": v for k, v in found["metrics"].items()} | {"best_step": step}
        return metrics

    def write(self, folder: Path) -> None:
        """The whole model as one safetensors file, by rank 0; all ranks call it."""
        from safetensors.torch import save_file

        whole = {}
        for name, tensor in self._weights().items():
            full = self.laid.whole(name) if name in self.laid.parameters else tensor.detach()
            if self.world.rank == 0:
                whole[name] = full.detach().cpu().contiguous().clone()
        if self.world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(whole, folder / MODEL, metadata={"format": "pt"})

    def write_outputs(self, folder: Path) -> None:
        """What `predict` gives for the held-out examples, a JSON value a line."""
        if self.task.predict is None or not len(self.task.heldout):
            return
        outputs = self.predict(self.task.heldout)
        if self.world.rank == 0:
            lines = "".join(json.dumps(each) + "\n" for each in outputs)
            (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")


class _Curve:
    """What `rate` asks for."""

    def __init__(self, config: TaskConfig, steps: int) -> None:
        self.steps = steps
        self.lr, self.warmup, self.schedule = config.lr, config.warmup, config.schedule
        self.decay, self.final = config.decay, config.final


def _adamw(laid: Laid, config: TaskConfig) -> torch.optim.AdamW:
    """With a state for every parameter from the start, so that it can be loaded."""
    learning = [p for p in laid.parameters.values() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=(beta1, beta2), eps=config.eps
    )
    for p in learning:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimizer
