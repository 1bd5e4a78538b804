"""Roles with a model: the actor, which writes and learns; the critic; the reference, which learns nothing.

Each rank of a role holds a copy of the model. Columns of rows: `ids` and `place` of a prompt; `prompt`,
`ids`, `logprobs`, `stop` and `place` of an answer; `reference`, `value`, `old`, `advantage`, `return` of its
tokens.
"""

from __future__ import annotations

import math
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
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, save_model
from shunter.parallel.told import told_by_all
from shunter.post.batch import Answers, Sample, micro_batches
from shunter.post.config import PostTrain
from shunter.post.course import Pupil
from shunter.post.journal import Journal
from shunter.post.objective import ScoreObjective
from shunter.post.policy import Policy, PolicySettings, Value
from shunter.post.preferences import of_each
from shunter.post.reward_model import new_head
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


class _Learning(_Scoring):
    """A model that is updated."""

    def __init__(
        self,
        station: Station,
        *,
        model: str,
        train: Mapping[str, Any],
        seed: int = 0,
        value: bool = False,
        temperature: float = 1.0,
        lr: float | None = None,
        keep: int = 2,
        **more: Any,
    ) -> None:
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
            head = new_head(decoder.spec.dim) if value else None
            self.pupil = Pupil(decoder, config, station.device, value=head, temperature=temperature, lr=lr)
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


class Actor(_Learning):
    """The policy. With t parts it learns cut, and comes together to write."""

    parts = True

    def __init__(
        self,
        station: Station,
        *,
        policy: Mapping[str, Any],
        sampling: Mapping[str, Any],
        group: int = 1,
        stops: Sequence[int] = (),
        max_gap: float = 0.02,
        journal: bool = False,
        **more: Any,
    ) -> None:
        """policy: PolicySettings. sampling: SamplingConfig; its batch is the answers side by side on a rank.
        group: answers to a prompt. journal: answers outlive a crash, in the station's folder, which must be
        of this very training alone."""
        super().__init__(station, temperature=float(sampling["temperature"]), **more)
        self.objective = Policy(PolicySettings(**policy))
        self.sampling = SamplingConfig.model_validate(sampling)
        self.group, self.stops, self.max_gap = group, list(stops), max_gap
        folder, writer = station.folder / "rollouts" / station.name, f"of-{station.rank}"
        # One for what is drawn, one for what is likeliest: their places are not the same.
        self.journals = (Journal(folder, writer), Journal(folder / "likeliest", writer)) if journal else ()

    @operation("micro_dp")
    def generate(self, asked: Rows, *, step: int, greedy: bool = False) -> Rows:
        """`group` answers to each prompt, or with `greedy` the likeliest one. Each draws from a stream of
        (seed, step, its place), so what is written does not depend on where."""
        group = 1 if greedy else self.group
        journal = self.journals[greedy] if self.journals else None
        found = {} if journal is None else journal.read(step, self.version)
        done: list[Rollout] = []
        reused = 0
        with self.whole() as decoder:
            # With `exact`, a prompt at a time: a token more beside it, and a product may round otherwise.
            size = 1 if self.station.exact else max(1, len(asked))
            for at in range(0, len(asked), size):
                some = asked.take(at, at + size)
                places = [int(place[0]) * group + i for place in some["place"] for i in range(group)]
                known = {place: found[place] for place in places if place in found}
                if self.station.exact and len(known) < len(places):
                    known = {}
                reused += len(known)
                missing = [place for place in places if place not in known]
                known |= self._write(decoder, some, missing, step, group, greedy, journal)
                done += [known[place] for place in places]
        self.tell(reused=reused)
        if self.cut is not None:
            self.tell(received=self.cut.bill.received, redundant=self.cut.bill.redundant)
        places = [int(place[0]) for place in asked["place"]]
        return Rows(
            {
                "prompt": [np.asarray(one.prompt, dtype=np.int64) for one in done],
                "ids": [np.asarray(one.ids, dtype=np.int64) for one in done],
                "logprobs": [np.asarray(one.logprobs, dtype=np.float64) for one in done],
                "stop": [np.array([ENDS.index(one.stop_reason)], dtype=np.int64) for one in done],
                "version": [np.asarray(one.versions, dtype=np.int64) for one in done],
                "place": [np.array([place * group + i]) for place in places for i in range(group)],
            },
            group,
        )

    def _write(
        self,
        decoder: Decoder,
        asked: Rows,
        places: Sequence[int],
        step: int,
        group: int,
        greedy: bool,
        journal: Journal | None,
    ) -> dict[int, Rollout]:
        """The answers of these places, each in the journal as soon as it is there."""
        if not places:
            return {}
        longest = max(len(ids) for ids in asked["ids"])
        room = min(longest + self.sampling.max_new_tokens, decoder.spec.max_positions)
        side = max(1, min(self.sampling.batch, len(asked) * group))
        sampling = self.sampling.model_copy(
            update={"batch": side, **({"temperature": 0.0} if greedy else {})}
        )
        seed = derive_seed(self.seed, "rollout", step)
        engine = RolloutEngine(
            decoder, sampling, self.stops, seed, size=8, tokens=side * (room + 8), version=self.version,
            tempered=True,
        )  # fmt: skip
        prompts = {int(place[0]): ids for ids, place in zip(asked["ids"], asked["place"], strict=True)}
        for place in places:
            engine.submit([int(id) for id in prompts[place // group]], stream=place)
        found: dict[int, Rollout] = {}
        while engine.waiting or engine.running:
            engine.step()
            fresh = {places[one.number]: one for one in engine.finished}
            if journal is not None:
                journal.write(step, fresh)
            found |= fresh
            engine.finished.clear()
        return found

    @operation("one_to_all")
    def kept(self, step: int) -> None:
        """A state after so many steps is kept: answers of those before are not asked for again."""
        for journal in self.journals:
            journal.forget(step)

    @operation("dp")
    def update(self, judged: Rows, *, step: int, part: int = 0, parts: int = 1, epoch: int = 0) -> None:
        """Learn from answers with `old` and `advantage`. Tells loss, terms, norm of the gradient, and what
        the objective tells. The first update of a step has the weights that wrote, so there
        log-probabilities are compared.

        Where no answer is better or worse than another, nothing changes (`idle`)."""
        flat = all(not np.any(advantage) for advantage in judged["advantage"])
        settings = self.objective.settings
        flat = all(told_by_all(flat, self.copies, self.station.device))
        first = epoch == part == 0
        if first:
            self.tell(staleness=self._stale(judged))
        if flat and not settings.kl and not settings.entropy:
            self.tell(idle=1.0, loss=0.0)
            if first:
                self._compare(self._gap(judged))
            return
        guard = self._compare if first else None
        result = self.learn(self.objective, judged, step, part, parts, epoch, guard)
        self.version += 1
        self.tell(idle=0.0, loss=result.loss, grad_norm=result.grad_norm, updated=float(result.updated))
        self.tell(**{f"{name}_loss": value for name, value in result.terms.items()})
        self.tell(**{name.replace("max/", "max_"): value for name, value in result.told.items()})

    def _stale(self, judged: Rows) -> float:
        """How many updates old the weights were that wrote, by the count of updates here: none, or the run
        stops."""
        if "version" not in judged.columns:
            return 0.0
        ages = [int(self.version - version) for versions in judged["version"] for version in versions]
        every = told_by_all([sum(ages), len(ages), any(ages)], self.copies, self.station.device)
        if any(each[2] for each in every):
            raise ShunterError(
                "answers were written by other weights than the newest, and are to be learnt from as if "
                "these had written them",
                where=self.station.name,
            )
        return float(sum(each[0] for each in every) / max(1, sum(each[1] for each in every)))

    def _gap(self, judged: Rows) -> dict[str, float]:
        """The gap between trainer and generator of answers from which nothing is learnt."""
        says = self.score(judged, "logprob")
        apart = [abs(mine - old) for mine, old in zip(says, judged["old"], strict=True)]
        mine = [
            float(sum(g.sum() for g in apart)),
            sum(map(len, apart)),
            max((float(g.max()) for g in apart), default=0.0),
        ]
        every = told_by_all(mine, self.copies, self.station.device)
        gap = sum(each[0] for each in every) / max(1, sum(each[1] for each in every))
        told = {"gap": gap, "max_gap": max(each[2] for each in every)}
        self.tell(**told)
        return told

    def _compare(self, told: Mapping[str, float]) -> None:
        gap = told["gap"]
        if not math.isfinite(gap):
            raise ShunterError(
                "a log-probability of the generator or the trainer is not a number",
                where=self.station.name,
                mend="Lower train.lr, and go on from an earlier checkpoint.",
            )
        if gap > self.max_gap:
            raise ShunterError(
                f"trainer and generator differ by {gap:.2g} nats a token, more than {self.max_gap:g}",
                where=self.station.name,
                mend="Set train.precision to fp32, or raise max_gap if it is bfloat16's rounding.",
            )

    @operation("one_to_all")
    def write(self, folder: str) -> None:
        """Write the model's folder; the first rank does."""
        with self.whole() as decoder:
            if self.station.rank == 0:
                save_model(decoder.cpu(), Path(folder))

    @operation("one_to_all")
    def fingerprint(self) -> float:
        """A sum of all weights' bits: ranks that hold the same say the same."""
        with self.whole() as decoder:
            return fingerprint(decoder)


class Critic(_Learning):
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
