"""Reinforcement learning under a layout: the ranks write their shares of a step, and learn together.

Each rank writes with the whole model: the policy itself where it is whole there, else a copy which takes the
place of this rank's part while a step is written. Rank 0 grades all answers, once. Every rank is told
all answers and all rewards: advantages, which compare answers with each other, are then those of one
process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shunter.generate.rollout import Engine, Rollout
from shunter.layout.piece import balanced
from shunter.models.decoder import Decoder
from shunter.parallel.lost import answering
from shunter.parallel.resharding import Bill
from shunter.parallel.together import without_memory
from shunter.parallel.told import told_by_all
from shunter.post.advantages import Array
from shunter.post.batch import Answers, Sample, grouped, micro_batches
from shunter.post.before import LaidOutBefore
from shunter.post.journal import Journal
from shunter.post.laid_out_pupil import LaidOutPupil
from shunter.post.preferences import of_each
from shunter.post.prompts import Prompt
from shunter.post.reinforce import Reinforcement
from shunter.post.rewards import Graded, Item
from shunter.private import replace_each


class LaidOutReinforcement(Reinforcement):
    """As `Reinforcement`; every rank calls the same methods in one order. policy, and critic: LaidOutPupil
    with one layout, of single answers. reference: makes a LaidOutBefore. grader: of ranks but the first,
    `Elsewhere`."""

    leaves_out = False  # micro-batches are of one number on all ranks

    def __init__(self, *given: Any, **more: Any) -> None:
        """given, more: as of `Reinforcement`, without an engine."""
        super().__init__(*given, **more)
        assert isinstance(self.policy, LaidOutPupil)
        self.laid_out, self.world = self.policy, self.policy.world
        self.writes = WritingCopy(self.policy)
        self.copies = not self.writes.own
        self._told = False  # the log says what it took to bring it together
        # A file a step for each rank: what one has written, all read.
        self.journal = Journal(self.course.place.work / "rollouts", f"r{self.world.rank:05d}")

    @property
    def scored_tokens(self) -> int:
        """Rows are dealt out to data ranks."""
        return self.course.how.micro_tokens * self.world.data.size

    @cached_property
    def engine(self) -> Engine:
        """What writes this rank's share."""
        most = len(self._mine(self.per_step * self.group)) or 1
        batch = min(self.sampling.batch, most)
        return self._writing(self.writes.model, self.sampling.model_copy(update={"batch": batch}))

    def _renew(self) -> None:
        """Weights are new to what writes when the next step is written: once for all updates of a step."""

    def _write(self, number: int, chosen: Sequence[Prompt]) -> list[Rollout]:
        count = len(chosen) * self.group
        with self.writes.there():
            self.engine.new_weights(self.updates)
            try:
                with self.world.alone("tell its answers"):
                    mine = self._written(number, chosen, self._mine(count))
            finally:
                del self.engine  # whose cache, and copy of weights in its own order, learning has no room for
        if not self._told and not self.writes.own:
            self._told = True
            told = {f"{name}_bytes": size for name, size in vars(self.writes.bill).items()}
            self.course.place.events.write("copy", **told)
        every = self._tell([[at, vars(one)] for at, one in mine.items()], "tell its answers")
        found = {int(at): Rollout(**values) for answers in every for at, values in answers}
        return [found[at] for at in range(count)]

    def _mine(self, count: int) -> range:
        """The places of this rank's answers: neighbours, which mostly answer one prompt."""
        return range(*balanced(count, self.world.size, self.world.rank))

    def _grade(self, prompts: Sequence[Prompt], done: Sequence[Rollout]) -> list[Graded]:
        """By rank 0: canaries, and rules that can grade nothing, are of a whole step, and programs of others
        run on its machine alone."""
        with self.world.alone("hear what answers are worth"):
            graded = super()._grade(prompts, done) if self.world.rank == 0 else []
        told = [[one.total, dict(one.parts), list(one.failed), list(one.unasked)] for one in graded]
        return [Graded(*each) for each in self._tell(told, "hear what answers are worth")[0]]

    def _refer(self, done: Sequence[Rollout]) -> list[Array]:
        assert isinstance(self.reference, LaidOutBefore)
        with self.reference.then() as scorer:
            return self._says(scorer, done)

    def _asked(self, done: Sequence[Rollout]) -> dict[str, float]:
        if self.tools is not None:  # each rank knows of its own calls
            counts = torch.tensor([self.tools.calls, self.tools.failed], device=self.world.device)
            self.tools.calls, self.tools.failed = map(int, self.world.sum(counts).tolist())
        return super()._asked(done)

    def _batches(self, samples: Sequence[Sample]) -> list[Answers]:
        """This rank's. Answers that share a prompt share a row, but where rows are spread over context ranks,
        or there would be fewer of them than micro-batches."""
        pupil, parallel = self.laid_out, self.laid_out.parallel
        rows = self._rows_of(samples, parallel.data * parallel.parts)
        if rows is None:
            return pupil.batches([[sample] for sample in samples], self.course.how.micro_tokens)
        return pupil.shared(rows)

    def _scored(self, samples: Sequence[Sample]) -> list[Answers]:
        """Of all ranks, which deal out the rows of each; likewise."""
        least = self.world.data.size
        rows = self._rows_of(samples, least)
        if rows is None:
            return micro_batches([[sample] for sample in samples], self.scored_tokens)
        return grouped(rows, self.scored_tokens, least=least)

    def _rows_of(self, samples: Sequence[Sample], least: int) -> list[list[Sample]] | None:
        """Answers that share a row, in shorter rows where there are fewer than `least`. None: here they do
        not, or no two of them could."""
        tokens, rows = self.course.how.micro_tokens, None
        if self.laid_out.parallel.cp == 1:
            rows = self._shared(samples, tokens)
        while rows is not None and len(rows) < least:
            tokens //= 2
            rows = None if len(rows) == len(samples) else self._shared(samples, tokens)
        return rows

    def _compare(self, samples: Sequence[Sample]) -> dict[str, float]:
        says = of_each(self.laid_out.scorer, samples, self.scored_tokens, cut=self._scored)
        gaps = np.concatenate([np.abs(s - m.known["old"]) for s, m in zip(says, samples, strict=True)])
        told = {"gap": float(gaps.sum()) / max(1, len(gaps)), "max/gap": float(gaps.max())}
        self._guard(told)
        return {"rl/gap": told["gap"], "rl/largest_gap": told["max/gap"]}

    def _tell(self, fact: Any, what: str) -> list[Any]:
        with answering(self.world.rank, what):
            return told_by_all(fact, self.world.mesh.everyone, self.world.device)


class WritingCopy:
    """The whole model on this rank, for writing.

    model: the one that learns, where this rank has all of it and computes with it as one process does; else a
    copy in its dtype. The copy has memory while it is used, and this rank's part of what learns has none
    then. bill: bytes of the last time.
    """

    def __init__(self, pupil: LaidOutPupil) -> None:
        passes = pupil.passes
        self.own = _is_plain(pupil)
        self.bill = Bill()
        if self.own:
            self.model = passes.decoder
            return
        dtype = next(iter(passes.part.weights.values())).dtype
        with torch.device("meta"):
            bare = Decoder(passes.decoder.spec)

        def room(tensor: Tensor) -> Tensor:
            return without_memory(torch.empty_like(tensor, device=passes.device))

        # As `to_empty`, one tensor at a time: all of them may have no room beside what learns.
        self.model = bare.to(dtype)
        replace_each(self.model, room)
        self.model.requires_grad_(False)
        self._together = passes.together(self.model.state_dict())

    @contextmanager
    def there(self) -> Iterator[None]:
        """Within it the model has the newest weights; what learns has none meanwhile, where this is a copy.
        Every rank calls it."""
        if self.own:
            yield
            return
        with self._together.there():
            self.bill = self._together.bill
            yield


class Elsewhere:
    """Of a rank that has no rules, since the first one grades: a `Grading` that holds what a checkpoint
    says, and no more."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.canaries = 0

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """Nobody asks: a reward from here would be of no rule."""
        raise RuntimeError("the rules are with rank 0, which grades all answers")

    def ends(self) -> dict[str, int]:
        """Rank 0 tells how answers ended."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


def _is_plain(pupil: LaidOutPupil) -> bool:
    """Whether a rank has the whole decoder, whose layers compute as without a layout: not where attention, or
    experts, ask other ranks about tokens, of which ranks that write have different numbers."""
    part, parallel = pupil.passes.part, pupil.parallel
    whole = parallel.pp == 1 and all(holding.piece.is_whole for holding in part.held.values())
    asks = parallel.cp > 1 or pupil.decoder.spec.experts is not None
    altered = part.sharded or parallel.recompute or parallel.offload or parallel.zero
    return whole and not asks and not altered
