"""Roles with a model: what learns; the critic; the reference, which learns nothing. The actor: actor.py.

Each rank of a role holds a copy of the model. Columns of rows: `ids` and `place` of a prompt; `prompt`,
`ids`, `logprobs`, `stop` and `place` of an answer; `reference`, `value`, `old`, `advantage`, `return` of its
tokens.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model
from shunter.parallel.told import told_by_all
from shunter.post.batch import Answers, Sample, micro_batches
from shunter.post.config import PostTrain
from shunter.post.course import Pupil
from shunter.post.objective import ScoreObjective
from shunter.post.policy import Value
from shunter.post.preferences import of_each
from shunter.post.reward_model import load_head, new_head
from shunter.post.roles.cut import CutModel
from shunter.post.roles.learning import shared_step
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Role, Station
from shunter.post.roles.rows import Rows
from shunter.post.step import ScoredResult, Scorer
from shunter.train.checkpoint.lifecycle import Checkpointer, State
from shunter.train.device import choose_precision
from shunter.train.optim import Optimizers
from shunter.train.schedule import rate

ENDS = ("stop", "length", "context")  # as `stop` has them
KNOWN = ("old", "advantage", "value", "return", "reference")


class _Scoring(Role):
    """What a model says of answers."""

    scorer: Scorer
    parts: ClassVar[bool] = False  # whether its model may be cut

    def __init__(self, station: Station, *, micro_tokens: int = 4096, **settings: Any) -> None:
        super().__init__(station, **settings)
        self.micro_tokens = micro_tokens
        layout = station.layout
        if layout.p > 1 or layout.tg > 1 or (layout.t > 1 and (station.exact or not self.parts)):
            raise ShunterError(
                f"{station.name} cannot have p={layout.p}, t={layout.t}, tg={layout.tg}: the actor alone may "
                "learn in parts (t), and no role writes in parts or has stages",
                where=station.name,
                mend="Give the others the degree 1; for the same bits in every placement, the actor too.",
            )

    def score(self, written: Rows, what: str) -> list[Any]:
        """A number for each token of each answer."""
        samples = samples_of(written)
        if not self.station.exact:
            return of_each(self.scorer, samples, self.micro_tokens, what)
        # What is computed together must not depend on who else is here.
        return [
            found
            for begin in range(0, len(samples), written.unit)
            for found in of_each(self.scorer, samples[begin : begin + written.unit], self.micro_tokens, what)
        ]

    def batches(self, judged: Rows, chosen: Sequence[int]) -> list[Answers]:
        """Micro-batches of some of the answers; with `exact`, of those of one run each."""
        samples = samples_of(judged)
        if not self.station.exact:
            return micro_batches([[samples[i]] for i in chosen], self.micro_tokens)
        runs: dict[int, list[int]] = {}
        for i in chosen:
            runs.setdefault(i // judged.unit, []).append(i)
        return [
            batch
            for run in runs.values()
            for batch in micro_batches([[samples[i]] for i in run], self.micro_tokens)
        ]


class Reference(_Scoring):
    """The model that training began with."""

    def __init__(
        self, station: Station, *, model: str, precision: str = "fp32", temperature: float = 1.0, **more: Any
    ) -> None:
        super().__init__(station, **more)
        decoder = load_model(Path(model)).to(station.device)
        self.scorer = Scorer(
            decoder, station.device, choose_precision(precision, station.device), temperature=temperature
        )

    @operation("dp")
    def logprobs(self, written: Rows) -> Rows:
        """`reference`: its log-probability of each token of each answer."""
        return Rows({"reference": self.score(written, "logprob")}, written.unit)


class Learning(_Scoring):
    """A model that is updated."""

    def __init__(
        self,
        station: Station,
        *,
        model: str,
        train: Mapping[str, Any],
        seed: int = 0,
        value: bool = False,
        head: str | None = None,
        temperature: float = 1.0,
        lr: float | None = None,
        keep: int = 2,
        **more: Any,
    ) -> None:
        """head: a folder with the value head to begin with, where there is to be one; none: zeros."""
        super().__init__(station, **more)
        self.model, self.seed = Path(model), seed
        decoder = load_model(self.model)
        config = PostTrain.model_validate(train)
        self.cut: CutModel | None = None
        name = station.name
        if station.layout.t > 1:
            self.cut = CutModel(decoder, station.layout, station.rank, station.groups, temperature)
            self.scorer, self.copies = self.cut.scorer, self.cut.copies
            self.config = config.plain()
            self.optimizers = Optimizers(decoder, self.config, self.cut.part)
            name += f"-{self.cut.mates.index}-of-{self.cut.mates.size}"
        else:
            given = None
            if value:
                given = new_head(decoder.spec.dim) if head is None else load_head(Path(head))
            self.pupil = Pupil(decoder, config, station.device, value=given, temperature=temperature, lr=lr)
            self.scorer, self.copies = self.pupil.scorer, station.everyone
            self.config, self.optimizers = self.pupil.config, self.pupil.optimizers
        self.skipped = self.version = 0
        self.most_skipped = config.max_skipped
        self._folder, self._keep = station.folder / "checkpoints" / name, keep
        first = self.copies.index == 0
        self._checkpointer = Checkpointer(self._folder, keep) if first else None

    def state(self) -> State:
        """The live tensors of this rank."""
        if self.cut is None:
            return self.pupil.state()
        parts = {name: p.detach() for name, p in self.cut.part.parameters.items()}
        return {"model": parts, "optimizer": self.optimizers.state()}

    @contextmanager
    def whole(self) -> Iterator[Decoder]:
        """The whole model, on every rank; where it is cut, it is in the place of the parts."""
        if self.cut is None:
            yield self.pupil.decoder
            return
        decoder = self.cut.together()
        try:
            yield decoder
        finally:
            self.cut.apart()

    def learn(
        self,
        objective: ScoreObjective,
        judged: Rows,
        step: int,
        part: int,
        parts: int,
        epoch: int,
        guard: Callable[[Mapping[str, float]], None] | None = None,
    ) -> ScoredResult:
        """One update from part `part` of `parts` of the step's answers, all ranks together."""
        chosen = list(chosen_answers(judged, self.seed, step, part, parts, epoch, self._answers(judged)))
        result = shared_step(
            self.scorer,
            self.optimizers,
            objective,
            self.batches(judged, chosen),
            self.copies,
            exact=self.station.exact,
            step=step,
            rate=rate(self.config, step),
            clip=self.config.clip,
            finish=None if self.cut is None else self.cut.finish,
            guard=guard,
        )
        self.skipped += not result.updated
        if self.skipped > self.most_skipped:
            raise ShunterError(
                f"loss or gradient was not finite in {self.skipped} steps, last in step {step}",
                where=self.station.name,
                mend="Lower train.lr, or raise train.max_skipped.",
            )
        return result

    def _answers(self, judged: Rows) -> int:
        """Answers of the step, of all copies."""
        return sum(told_by_all(len(judged), self.copies, self.station.device))

    @operation("one_to_all")
    def save(self, step: int) -> None:
        """Keep the state after so many steps; the first rank writes."""
        if self._checkpointer is not None:
            self._checkpointer.save(step, self.state(), {"skipped": self.skipped, "version": self.version})

    @operation("one_to_all")
    def forget(self, after: int) -> None:
        """Remove what was kept of later steps: they are done anew, and a kept one is never overwritten."""
        if self._checkpointer is not None:
            for step in self._checkpointer.steps():
                if step > after:
                    shutil.rmtree(self._folder / f"step-{step:08d}")

    @operation("one_to_all")
    def restore(self, step: int) -> None:
        """Go on from a state that was kept."""
        checkpointer = self._checkpointer or Checkpointer(self._folder, self._keep, clean=False)
        extra = checkpointer.load(step, self.state())
        self.skipped, self.version = int(extra["skipped"]), int(extra["version"])


class Critic(Learning):
    """The value model: what an answer is going to be worth, after each of its tokens."""

    def __init__(self, station: Station, *, clip: float = 0.2, weight: float = 0.5, **more: Any) -> None:
        super().__init__(station, value=True, **more)
        self.objective = Value(clip, weight)

    @operation("dp")
    def values(self, written: Rows) -> Rows:
        """`value` of each token of each answer."""
        return Rows({"value": self.score(written, "value")}, written.unit)

    @operation("dp")
    def update(self, judged: Rows, *, step: int, part: int = 0, parts: int = 1, epoch: int = 0) -> None:
        """Learn from answers with `value` and `return`."""
        result = self.learn(self.objective, judged, step, part, parts, epoch)
        self.tell(loss=result.loss, grad_norm=result.grad_norm, updated=float(result.updated), **result.told)


def samples_of(rows: Rows) -> list[Sample]:
    """Answers as samples, with what is known of their tokens."""
    known = [name for name in KNOWN if name in rows.columns]
    return [
        Sample(
            [*prompt.tolist(), *ids.tolist()],
            [False] * len(prompt) + [True] * len(ids),
            {name: np.asarray(rows[name][i], dtype=np.float64) for name in known},
        )
        for i, (prompt, ids) in enumerate(zip(rows["prompt"], rows["ids"], strict=True))
    ]


def chosen_answers(
    rows: Rows, seed: int, step: int, part: int, parts: int, epoch: int, count: int
) -> Iterator[int]:
    """Which of these rows are in part `part` of the step's `count` answers, drawn as `rl` draws them."""
    if parts == 1:
        yield from range(len(rows))
        return
    draw = np.random.Generator(np.random.Philox(derive_seed(seed, "cut", step, epoch)))
    mine = set(np.array_split(draw.permutation(count), parts)[part].tolist())
    yield from (i for i, place in enumerate(rows["place"]) if int(place[0]) in mine)


@torch.no_grad()
def fingerprint(module: torch.nn.Module) -> float:
    """A number that any change of any weight's bits changes, but for a chance of 2^-52."""
    total = 0
    for name, tensor in sorted(module.state_dict().items()):
        bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        total = (total * 1000003 + zlib.crc32(bits.tobytes(), zlib.crc32(name.encode()))) % (1 << 52)
    return float(total)
