"""Roles that write answers and keep them in a journal: the actor, and a writer beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.seed import derive_seed
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.footprint import BLOCK, cache_tokens
from shunter.models.hf import load_model
from shunter.post import writers
from shunter.post.journal import Journal
from shunter.post.roles.models import ENDS
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Role, Station
from shunter.post.roles.rows import Rows


class Writes(Role):
    """A role that writes with a whole model of some version. age: updates that an answer in the journal may
    be older than that."""

    seed: int
    version: int
    age = 0

    def ready(self, sampling: Mapping[str, Any], group: int, stops: Sequence[int], journal: bool) -> None:
        """sampling: SamplingConfig; its batch is the answers side by side on a rank. group: answers to a
        prompt. journal: answers outlive a crash, in the station's folder, which must be of this very training
        alone."""
        self.sampling = SamplingConfig.model_validate(sampling)
        self.group, self.stops = group, list(stops)
        folder, name = self.station.folder / "rollouts" / self.station.name, f"of-{self.station.rank}"
        # One for what is drawn, one for what is likeliest: their places are not the same.
        self.journals = (Journal(folder, name), Journal(folder / "likeliest", name)) if journal else ()

    @contextmanager
    def whole(self) -> Iterator[Decoder]:
        """The model to write with."""
        raise NotImplementedError
        yield

    def _bill(self) -> dict[str, float]:
        """What it took to have the model whole."""
        return {}

    @operation("micro_dp")
    def generate(self, asked: Rows, *, step: int, greedy: bool = False) -> Rows:
        """`group` answers to each prompt, or with `greedy` the likeliest one. Each draws from a stream of
        (seed, step, its place), so what is written does not depend on where. `again`, where weights may be
        older: an attempt before this one wrote it, by weights that may be other ones of the same number."""
        group = 1 if greedy else self.group
        journal = self.journals[greedy] if self.journals else None
        found = {} if journal is None else journal.read(step, self.version, self.version - self.age)
        done: list[Rollout] = []
        read: set[int] = set()
        # With `exact`, a prompt at a time: a token more beside it, and a product may round otherwise.
        size = 1 if self.station.exact else max(1, len(asked))
        engine: RolloutEngine | None = None
        with self.whole() as decoder:
            for at in range(0, len(asked), size):
                some = asked.take(at, at + size)
                places = [int(place[0]) * group + i for place in some["place"] for i in range(group)]
                known = {place: found[place] for place in places if place in found}
                if self.station.exact and len(known) < len(places):
                    known = {}
                read |= known.keys()
                missing = [place for place in places if place not in known]
                if missing:
                    # One for all prompts, whose weights it copies into an order of its own.
                    engine = engine or self._engine(decoder, asked, size * group, step, greedy)
                    known |= _written(engine, some, missing, step, group, journal)
                done += [known[place] for place in places]
        self.tell(reused=len(read))
        self.tell(**self._bill())
        places = [int(place[0]) * group + i for place in asked["place"] for i in range(group)]
        again = [np.array([int(place in read and not self.station.exact)]) for place in places]
        return Rows(
            {
                "prompt": [np.asarray(one.prompt, dtype=np.int64) for one in done],
                "ids": [np.asarray(one.ids, dtype=np.int64) for one in done],
                "logprobs": [np.asarray(one.logprobs, dtype=np.float64) for one in done],
                "stop": [np.array([ENDS.index(one.stop_reason)], dtype=np.int64) for one in done],
                "version": [np.asarray(one.versions, dtype=np.int64) for one in done],
                "place": [np.array([place]) for place in places],
                **({"again": again} if self.age else {}),
            },
            group,
        )

    def _engine(self, decoder: Decoder, asked: Rows, most: int, step: int, greedy: bool) -> RolloutEngine:
        """What writes at most `most` answers side by side, to any of these prompts."""
        longest = max(len(ids) for ids in asked["ids"])
        room = min(longest + self.sampling.max_new_tokens, decoder.spec.max_positions)
        side = max(1, min(self.sampling.batch, most))
        sampling = self.sampling.model_copy(
            update={"batch": side, **({"temperature": 0.0} if greedy else {})}
        )
        seed = derive_seed(self.seed, "rollout", step)
        return RolloutEngine(
            decoder, sampling, self.stops, seed, size=BLOCK, tokens=cache_tokens(side, room),
            version=self.version, tempered=True,
        )  # fmt: skip

    @operation("one_to_all")
    def kept(self, step: int) -> None:
        """A state after so many steps is kept: answers of those before are not asked for again."""
        for journal in self.journals:
            journal.forget(step)


def _written(
    engine: RolloutEngine,
    asked: Rows,
    places: Sequence[int],
    step: int,
    group: int,
    journal: Journal | None,
) -> dict[int, Rollout]:
    """The answers of these places, each in the journal as soon as it is there."""
    prompts = {int(place[0]): ids for ids, place in zip(asked["ids"], asked["place"], strict=True)}
    numbers = {
        engine.submit([int(id) for id in prompts[place // group]], stream=place): place for place in places
    }
    found: dict[int, Rollout] = {}
    while engine.busy:
        engine.step()
        fresh = {numbers[one.number]: one for one in engine.finished}
        if journal is not None:
            journal.write(step, fresh)
        found |= fresh
        engine.finished.clear()
    return found


class Writer(Writes):
    """Writes with weights that the actor has handed on, while it learns."""

    def __init__(
        self,
        station: Station,
        *,
        model: str,
        sampling: Mapping[str, Any],
        seed: int = 0,
        group: int = 1,
        stops: Sequence[int] = (),
        journal: bool = False,
        age: int = 0,
        **settings: Any,
    ) -> None:
        """model: a folder with its shape. age: as of `Writes`. Others as of the actor."""
        super().__init__(station, **settings)
        self.decoder = load_model(Path(model)).to(station.device)
        self.seed, self.version, self.age = seed, -1, age
        self.ready(sampling, group, stops, journal)

    @contextmanager
    def whole(self) -> Iterator[Decoder]:
        """The model, as it was handed on last."""
        yield self.decoder

    @operation("one_to_all")
    def load(self, told: Sequence[Any]) -> None:
        """Go on with the actor's weights: what its `weights` gave."""
        first = told[0]
        writers.load(self.decoder, writers.tensors(first["weights"], self.decoder))
        self.version = int(first["version"])
