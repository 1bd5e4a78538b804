"""The actor: it writes answers, keeps them in a journal, and learns from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.models.hf import save_model
from shunter.parallel.told import told_by_all
from shunter.post.policy import Policy, PolicySettings
from shunter.post.preferences import of_each
from shunter.post.roles.models import Learning, fingerprint, samples_of
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Station
from shunter.post.roles.rows import Rows
from shunter.post.roles.writes import Writes
from shunter.post.step import Scorer
from shunter.post.watched import agree
from shunter.post.writers import HELD, Weights, arrays, load, snapshot


class Actor(Learning, Writes):
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
        staleness: int = 0,
        behind: int = 0,
        **more: Any,
    ) -> None:
        """policy: PolicySettings. sampling, group, stops, journal: as of `Writes.ready`. staleness: updates
        that the weights may be old which wrote what it learns from; behind: and steps, of which some may have
        made none."""
        super().__init__(station, temperature=float(sampling["temperature"]), **more)
        self.objective = Policy(PolicySettings(**policy))
        self.max_gap, self.staleness = max_gap, staleness
        self.ready(sampling, group, stops, journal)
        self.begins: deque[int] = deque(maxlen=behind + 1)  # versions at the beginning of the last steps
        self.held: dict[int, Weights] = {}  # by version, with staleness
        self.shadow: Scorer | None = None

    def _bill(self) -> dict[str, float]:
        if self.cut is None:
            return {}
        return {"received": self.cut.bill.received, "redundant": self.cut.bill.redundant}

    @operation("one_to_all")
    def weights(self) -> dict[str, Any] | None:
        """The weights as they are now, for who writes; the first rank gives them, and all keep them to hold
        what was written against."""
        with self.whole() as decoder:
            now = snapshot(decoder)
        oldest = self.version - self.staleness
        self.held = {version: each for version, each in self.held.items() if version >= oldest}
        self.held[self.version] = now
        return {"version": self.version, "weights": arrays(now)} if self.station.rank == 0 else None

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
        compared = first and not self.staleness  # else what differs is how far the policy has moved
        if first and self.staleness:
            self._hold(judged, step)
        if flat and not settings.kl and not settings.entropy:
            self.tell(idle=1.0, loss=0.0)
            if compared:
                self._compare(self._gap(judged))
            return
        if compared and parts > 1:  # all answers, before any is learnt from, not those of this part alone
            self._compare(self._gap(judged))
        guard = self._compare if compared else None
        result = self.learn(self.objective, judged, step, part, parts, epoch, guard)
        self.version += 1
        self.tell(idle=0.0, loss=result.loss, grad_norm=result.grad_norm, updated=float(result.updated))
        self.tell(**{f"{name}_loss": value for name, value in result.terms.items()})
        told = {name.replace("max/", "largest_"): value for name, value in result.told.items()}
        if self.staleness:
            told = {"off_policy" if name == "gap" else name: value for name, value in told.items()}
            del told["largest_gap"]
        self.tell(**told)

    def _stale(self, judged: Rows) -> float:
        """How many updates old the weights were that wrote, by the count of updates here: since the step
        `behind` steps before this one at most, or the run stops."""
        self.begins.append(self.version)
        known = len(self.begins) == self.begins.maxlen  # since this attempt began
        most = self.version - self.begins[0] if known else self.staleness
        if "version" not in judged.columns:
            return 0.0
        ages = [int(self.version - version) for versions in judged["version"] for version in versions]
        mine = [sum(ages), len(ages), min(ages, default=0), max(ages, default=0)]
        every = told_by_all(mine, self.copies, self.station.device)
        newest, oldest = min(each[2] for each in every), max(each[3] for each in every)
        if newest < 0 or oldest > most:
            wrong = newest if newest < 0 else oldest
            raise ShunterError(
                f"answers were written by weights that are {wrong} updates old, and may be {most} at most",
                where=self.station.name,
            )
        if self.staleness:
            self.tell(max_staleness=oldest)
        return float(sum(each[0] for each in every) / max(1, sum(each[1] for each in every)))

    def _hold(self, judged: Rows, step: int) -> None:
        """The gap between trainer and generator: some of the answers against the weights that wrote them,
        which those of an attempt before this one are not (`again`)."""
        units = len(judged) // judged.unit
        draw = np.random.Generator(np.random.Philox(derive_seed(self.seed, "held", step)))
        again = [int(each[0]) for each in judged["again"]] if "again" in judged.columns else []
        old = {row // judged.unit for row, is_old in enumerate(again) if is_old}
        ours = [unit for unit in draw.permutation(units).tolist() if unit not in old]
        some = sorted(ours[: -(-units // HELD)])
        rows = [unit * judged.unit + i for unit in some for i in range(judged.unit)]
        samples, apart = samples_of(judged), []
        versions = {row: np.asarray(judged["version"][row]) for row in rows}
        for version in sorted({int(v) for each in versions.values() for v in each} & self.held.keys()):
            mine = [row for row in rows if version in versions[row]]
            scorer = self._as_it_was(version)
            says = of_each(scorer, [samples[row] for row in mine], self.micro_tokens)
            for row, each in zip(mine, says, strict=True):
                apart.append(abs(each - samples[row].known["old"])[versions[row] == version])
        self._compare(self._gap_of(apart))

    def _as_it_was(self, version: int) -> Scorer:
        """The trainer's model with the weights of a version."""
        if self.shadow is None:
            now = self.scorer
            self.shadow = Scorer(
                deepcopy(now.decoder), now.device, now.precision, temperature=now.temperature
            )
        load(self.shadow.decoder, self.held[version])
        return self.shadow

    def _gap(self, judged: Rows) -> dict[str, float]:
        """The gap between trainer and generator of answers from which nothing is learnt."""
        says = self.score(judged, "logprob")
        return self._gap_of([abs(mine - old) for mine, old in zip(says, judged["old"], strict=True)])

    def _gap_of(self, apart: Sequence[Any]) -> dict[str, float]:
        """Mean and largest of all ranks' differences, which are told."""
        mine = [
            float(sum(g.sum() for g in apart)),
            sum(map(len, apart)),
            max((float(g.max()) for g in apart), default=0.0),
        ]
        every = told_by_all(mine, self.copies, self.station.device)
        gap = sum(each[0] for each in every) / max(1, sum(each[1] for each in every))
        told = {"gap": gap, "largest_gap": max(each[2] for each in every)}
        if any(each[1] for each in every):
            self.tell(**told)
        return told

    def _compare(self, told: Mapping[str, float]) -> None:
        agree(told["gap"], self.max_gap, self.station.name)

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
