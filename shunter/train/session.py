"""Everything that a training run is between two steps, and how it is saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.loader import Loader
from shunter.data.tokens import TokenRows
from shunter.models.decoder import Decoder
from shunter.parallel.part import DecoderPart
from shunter.train.checkpoint.lifecycle import Checkpointer, State
from shunter.train.config import Restore, TrainConfig
from shunter.train.device import generator_state, restore_generator
from shunter.train.meter import Tally
from shunter.train.optim import Optimizers
from shunter.train.spikes import SpikeDetector


@dataclass
class Session:
    """A run's state. `step` counts finished steps; the schedule is a function of it, not a state.

    weights: what makes up the model here, by name: all of it, or this rank's part.

    There is no hidden random state: the order of rows is derived from (seed, epoch), the noise in the input
    from (stream, step, row). torch's global generators are saved all the same, for models that draw from
    them.
    """

    model: Decoder
    weights: Mapping[str, Tensor]
    config: TrainConfig
    optimizers: Optimizers
    loader: Loader
    stream: int = 0  # seed of what is drawn within steps
    step: int = 0
    tokens: int = 0  # valid targets seen
    skipped: list[dict[str, Any]] = field(default_factory=list)  # steps without an update: {step, rows}
    best: float | None = None  # lowest validation loss, nats/token
    restarted: bool = False  # the planned interruption is behind us
    schedule_origin: int = 0  # step at which the schedule began; not 0 only after a lossy restore
    facts: dict[str, Any] = field(default_factory=dict)  # device, precision: to notice a change
    spikes: SpikeDetector = field(default_factory=SpikeDetector)
    tally: Tally = field(default_factory=Tally)
    final: dict[str, Any] | None = None  # held-out metrics after the last step

    @classmethod
    def fresh(
        cls,
        model: Decoder,
        config: TrainConfig,
        rows: TokenRows,
        seed: int,
        part: DecoderPart | None = None,
    ) -> Session:
        """A run that has done nothing yet. part: this rank's, where the model is laid out over several."""
        weights = model.state_dict(keep_vars=True) if part is None else part.state
        optimizers = Optimizers(model, config, part)
        loader = Loader(rows, derive_seed(seed, "order"))
        return cls(model, weights, config, optimizers, loader, derive_seed(seed, "stream"))

    def state(self) -> State:
        """The live tensors, nested by owner; loading fills them in place.

        Frozen parameters are not among them: they are those that the run began with.
        """
        trained = {
            name: tensor.detach()
            for name, tensor in self.weights.items()
            if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
        }
        return {
            "model": trained,
            "optimizer": self.optimizers.state(),
            "rng": {"torch": torch.get_rng_state()},
        }

    def extra(self) -> dict[str, Any]:
        """What is not a tensor, as JSON values."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "data": self.loader.state(),
            "stream": self.stream,
            "skipped": self.skipped,
            "best": self.best,
            "restarted": self.restarted,
            "schedule_origin": self.schedule_origin,
            "facts": self.facts,
            "config": self.config.model_dump(mode="json"),
            "spikes": self.spikes.state(),
            "tally": self.tally.state(),
            "final": self.final,
            # No tensor: a checkpoint must open on a machine without the device.
            "generator": generator_state(self._device),
        }

    def save(self, checkpointer: Checkpointer, *, later: bool = False) -> None:
        """Publish the state after `step` steps; later: while the run goes on."""
        save = checkpointer.save_later if later else checkpointer.save
        save(self.step, self.state(), self.extra())

    def load(self, checkpointer: Checkpointer, step: int, restore: Restore = "full") -> dict[str, Any]:
        """Continue from the checkpoint of `step`; returns the facts of the process that wrote it.

        A `restore` other than full leaves the named part as a fresh run has it (see Restart): the
        losses that arXiv 2412.13335 warns of, made on purpose.
        """
        state = self.state()
        extra = checkpointer.load(step, state, self._same_run)
        self.step, self.tokens = extra["step"], extra["tokens"]
        self.skipped, self.best = extra["skipped"], extra["best"]
        self.restarted, self.schedule_origin = extra["restarted"], extra["schedule_origin"]
        self.spikes.restore(extra.get("spikes", {}))
        self.tally, self.final = Tally.restored(extra.get("tally", {})), extra.get("final")
        lost = {restore.removeprefix("no-")} if restore != "weights-only" else _ALL
        if "optimizer" in lost:
            self.optimizers.materialise()
        if "schedule" in lost:
            self.schedule_origin = self.step
        if "data" not in lost:
            self.loader.restore(extra["data"])
        self.stream = extra.get("stream", self.stream)
        if "rng" in lost:
            self.stream = derive_seed(self.stream, "lost", self.step)
        elif restore == "other-seed":
            self.stream = derive_seed(self.stream, "other", self.step)
            self.loader.turn(derive_seed(self.loader.seed, "other", self.step))
        else:
            torch.set_rng_state(state["rng"]["torch"])
            restore_generator(self._device, extra.get("generator"))
        facts: dict[str, Any] = extra["facts"]
        return facts

    @property
    def _device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    def _same_run(self, extra: dict[str, Any], where: str) -> None:
        """Raises ShunterError when the checkpoint belongs to a run of another configuration."""
        if "config" not in extra:  # written before it was saved
            return
        mine = self.config.model_dump(mode="json")
        # A key that is newer than the checkpoint had its default then.
        theirs = {name: field.default for name, field in TrainConfig.model_fields.items()} | extra["config"]
        changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if changed:
            told = ", ".join(f"train.{name} was {theirs.get(name)}, is {mine.get(name)}" for name in changed)
            raise ShunterError(
                f"the checkpoint belongs to a run with another configuration ({told})",
                where=where,
                mend="Go on with the old configuration, or begin anew in another folder: the length of a run "
                "and its schedule are fixed when it begins.",
            )


_ALL = {"optimizer", "schedule", "data", "rng"}
