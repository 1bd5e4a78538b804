"""The actor: it writes answers, keeps them in a journal, and learns from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.parallel.told import told_by_all
from shunter.post.journal import Journal
from shunter.post.policy import Policy, PolicySettings
from shunter.post.roles.models import ENDS, Learning, fingerprint
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Station
from shunter.post.roles.rows import Rows


class Actor(Learning):
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
        if first and parts > 1:  # all answers, before any is learnt from, not those of this part alone
            self._compare(self._gap(judged))
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
