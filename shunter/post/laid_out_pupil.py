"""A model that learns on several ranks: its part here, its optimizer, its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from shunter.data.tokens import Batch
from shunter.layout.holding import Holding
from shunter.models.decoder import Decoder
from shunter.parallel.mesh import Peers
from shunter.parallel.part import Fill
from shunter.post.batch import Answers, Sample, grouped, lay_out
from shunter.post.config import PostTrain
from shunter.post.course import Guard, Pupil
from shunter.post.laid_out import VALUE, LaidOutScorer, laid_out_step
from shunter.post.layout import PAIR, Unit, must_fit, row_multiple, row_width, settled
from shunter.post.objective import ScoreObjective
from shunter.post.samplers import balanced
from shunter.post.step import Gradient, ScoredResult
from shunter.train.checkpoint.lifecycle import Checkpointer, State
from shunter.train.checkpoint.shared import SharedCheckpointer, found_in
from shunter.train.config import Parallel
from shunter.train.device import choose_precision
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.recording import Peak, Recording, keep
from shunter.train.schedule import rate
from shunter.train.world import World


class LaidOutPupil(Pupil):
    """As `Pupil`; every rank calls the same methods in one order. Units of samples are pairs, or answers."""

    def __init__(
        self,
        decoder: Decoder,
        train: PostTrain,
        world: World,
        parallel: Parallel,
        *,
        units: int,
        longest: int,
        micro_tokens: int,
        fill: Fill | None = None,
        value: nn.Linear | None = None,
        temperature: float = 1.0,
        lr: float | None = None,
        unit: Unit = PAIR,
    ) -> None:
        """decoder, fill: as in `DecoderPart`. units: of a step, over all ranks. longest: tokens of a sample.
        value, temperature, lr: as in `Pupil`. unit: what `units` counts.

        Raises ShunterError for a layout that cannot be.
        """
        width = row_width(parallel, longest)
        parallel = settled(parallel, units, unit.samples * width, micro_tokens, unit)
        must_fit(decoder.spec, parallel, width)
        self.world, self.parallel = world, parallel
        config = train.plain()
        self.config = config if lr is None else config.model_copy(update={"lr": lr})
        self.passes = LaidOutPasses(
            decoder, parallel, world, width, fill, rows=unit.samples, optimizer=self.config.optimizer
        )
        self.passes.precision = choose_precision(train.precision, world.device)
        self.scorer = self.laid_out = LaidOutScorer(
            self.passes,
            value=value,
            temperature=temperature,
            width=width if parallel.cp > 1 else None,
            multiple=row_multiple(parallel),
        )
        self.decoder, self.value, self.module = decoder, value, decoder
        self.optimizers = Optimizers(decoder, self.config, self.passes.part)

    def batches(self, units: Sequence[Sequence[Sample]], tokens: int) -> list[Answers]:
        """This rank's micro-batches of a step's units, which all ranks have."""
        mine = dealt(units, self.world.data, self.parallel.parts)
        found = [lay_out([sample for unit in part for sample in unit]) for part in mine]
        return [cast(Answers, self.laid_out.fitted(each)) for each in found]

    def shared(self, groups: Sequence[Sequence[Sample]]) -> list[Answers]:
        """Likewise of samples with one prompt, which share a row; not where rows are spread (cp). Raises
        ValueError for fewer of them than micro-batches."""
        if len(groups) < self.parallel.data * self.parallel.parts:
            raise ValueError("there are more micro-batches than rows")
        mine = dealt(
            groups, self.world.data, self.parallel.parts, lambda group: sum(len(s.ids) for s in group)
        )
        return [grouped(part, sys.maxsize)[0] for part in mine]

    def learn(
        self,
        objective: ScoreObjective,
        batches: Sequence[Batch],
        step: int,
        guard: Guard | None = None,
        begun: Gradient | None = None,
    ) -> ScoredResult:
        assert begun is None, "ranks begin a step together"
        with self._watched(step):
            return laid_out_step(
                self.laid_out,
                self.optimizers,
                objective,
                batches,
                step=step,
                rate=rate(self.config, step),
                clip=self.config.clip,
                guard=guard,
            )

    @contextmanager
    def _watched(self, step: int) -> Iterator[None]:
        """As `train.loop` watches: the step that `timeline` names, and the next one's peak of memory."""
        watched, place = self.parallel.timeline, self.place
        if watched is None or place is None or not 0 <= step - watched <= 1:
            yield
        elif step == watched:
            recording = Recording(self.passes)
            yield
            keep(recording, self.optimizers, step, place.log, place.events)
        else:
            with Peak(self.passes, self.optimizers, step, place.events):
                yield

    def state(self) -> State:
        before = "" if self.value is None else "decoder."

        def named(name: str) -> str:
            return name if name.startswith(VALUE) else before + name

        return {
            "model": {named(name): tensor.detach() for name, tensor in self.passes.part.state.items()},
            "optimizer": {named(name): state for name, state in self.optimizers.state().items()},
        }

    def checkpointer(self, folder: Path, keep: int, pupils: Mapping[str, Pupil]) -> Checkpointer:
        return _PupilsCheckpointer(folder, keep, self.world, pupils)

    def publish(self, whole: Decoder, head: nn.Linear | None = None) -> bool:
        """Put all ranks' weights into rank 0's `whole` and `head`; every rank calls it. True on rank 0."""
        found = self.passes.whole(self.passes.part.state)
        if found is None:
            return False
        learnt = {name.removeprefix(VALUE): found.pop(name) for name in list(found) if name.startswith(VALUE)}
        whole.load_state_dict(found, strict=True, assign=True)
        if head is not None:
            head.load_state_dict(learnt)
        return True


class _PupilsCheckpointer(SharedCheckpointer):
    """Names begin with that of the pupil, and of a decoder with a value head then with `decoder.`."""

    def __init__(self, folder: Path, keep: int, world: World, pupils: Mapping[str, Pupil]) -> None:
        self.passes = {
            name: pupil.passes for name, pupil in pupils.items() if isinstance(pupil, LaidOutPupil)
        }
        # Of a tied weight at both ends of a pipeline: pupils have one layout.
        elsewhere = frozenset(name for each in self.passes.values() for name in each.elsewhere)
        super().__init__(folder, keep, world, {}, elsewhere)

    def _holding(self, name: str) -> tuple[str, Holding] | None:
        pupil, _, rest = name.partition(".")
        if pupil not in self.passes:
            return None
        owner, _, inner = rest.partition(".")
        part = self.passes[pupil].part
        held = part.kept if owner == "optimizer" else part.held
        return found_in(held, inner.removeprefix("decoder."))


def longest(unit: Sequence[Sample]) -> int:
    """Tokens of the longest of these samples."""
    return max(len(sample.ids) for sample in unit)


def dealt(
    units: Sequence[Sequence[Sample]],
    data: Peers,
    parts: int,
    length: Callable[[Sequence[Sample]], int] = longest,
) -> list[list[Sequence[Sample]]]:
    """Those of this rank's micro-batches. Ranks have sums of lengths that are alike, and units of like length
    share a micro-batch."""
    lengths = {i: float(length(unit)) for i, unit in enumerate(units)}
    mine = [units[i] for i in sorted(balanced(lengths, data.size)[data.index], key=lambda i: (lengths[i], i))]
    return [[mine[int(i)] for i in part] for part in np.array_split(np.arange(len(mine)), parts)]
