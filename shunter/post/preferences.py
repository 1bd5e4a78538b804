"""Learning from pairs of answers: the reference's log-probabilities once, then step after step."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.loader import Loader
from shunter.data.tokens import IGNORE
from shunter.post.advantages import Array
from shunter.post.batch import Answers, Sample, micro_batches
from shunter.post.course import Course, Pupil
from shunter.post.objective import ScoreObjective
from shunter.post.prompts import Pair, Read
from shunter.post.spent import Shape, padded
from shunter.post.step import Scorer

Unit = tuple[Sample, Sample]


class Preferences:
    """The lessons of `dpo` and `reward_model`. shape: of the steps that were made."""

    def __init__(
        self,
        course: Course,
        pupil: Pupil,
        objective: ScoreObjective,
        train: Read,
        heldout: Read,
        *,
        batch_pairs: int,
        validate_every: int,
        reference: bool,
        seed: int,
    ) -> None:
        """reference: the objective compares with what the model says now, before it has learnt."""
        self.course, self.pupil, self.objective = course, pupil, objective
        self.batch_pairs, self.validate_every = batch_pairs, validate_every
        self.pupils: Mapping[str, Pupil] = {"model": pupil}
        self.loader = Loader(train, derive_seed(seed, "order"))
        self.units, self.heldout = _units(train.items), _units(heldout.items)
        self.shape = Shape()
        pupil.place = course.place
        if reference:
            begin, known = time.perf_counter(), (course.place.work / "reference.safetensors").exists()
            work, scorer = course.place.work, pupil.scorer
            tokens = course.how.micro_tokens
            keep = course.world is None or course.world.rank == 0
            self.units = with_reference(self.units, scorer, work / "reference.safetensors", tokens, keep)
            self.heldout = with_reference(self.heldout, scorer, work / "heldout.safetensors", tokens, keep)
            if not known:
                samples = [sample for unit in (*self.units, *self.heldout) for sample in unit]
                self.shape.reference = time.perf_counter() - begin, padded(samples)
        self.final: dict[str, float] = {}

    def step(self, number: int) -> Mapping[str, float]:
        """Learn from the next pairs; validate where it is time to."""
        begin = time.perf_counter()
        chosen = [self.units[int(i)] for i in self.loader.take(self.batch_pairs)]
        batches = self.pupil.batches(chosen, self.course.how.micro_tokens)
        result = self.pupil.learn(self.objective, batches, number)
        self.course.learnt(result, number)
        self.shape.add(batches)
        values = {f"pairs/{name}": value for name, value in result.told.items()}
        values |= {"pairs/loss": result.loss, "train/grad_norm": result.grad_norm}
        values["train/step_seconds"] = time.perf_counter() - begin
        last = number + 1 == self.course.train.steps
        if self.heldout and (last or (self.validate_every and (number + 1) % self.validate_every == 0)):
            self.final = {f"heldout/{name}": value for name, value in self.validate().items()}
            values |= self.final
        return values

    def validate(self) -> dict[str, float]:
        """What is told, and the loss, on the held-out pairs."""
        batches = micro_batches(self.heldout, self.course.how.micro_tokens)
        counts = {"pair": float(len(self.heldout))}
        found: dict[str, float] = {}
        with torch.no_grad():
            for batch in batches:
                scores = self.pupil.scorer(batch, self.objective.needs)
                terms = self.objective.terms(scores, batch, counts)
                told = self.objective.told(scores, batch, counts)
                for name, value in [*told.items(), *(("loss", term) for term in terms.values())]:
                    found[name] = found.get(name, 0.0) + float(value)
        return found

    def state(self) -> dict[str, Any]:
        return {"loader": self.loader.state(), "final": self.final}

    def saved(self, oldest: int) -> None:
        """Nothing is held between checkpoints."""

    def restore(self, state: dict[str, Any]) -> None:
        self.loader.restore(state["loader"])
        self.final = dict(state["final"])


def _units(pairs: Sequence[Pair]) -> list[Unit]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


def with_reference(
    units: Sequence[Unit], scorer: Scorer, path: Path, tokens: int, keep: bool = True
) -> list[Unit]:
    """The same pairs with `reference`: computed with `scorer` and kept in `path`, or read from there.

    keep: of several ranks that compute it together, one writes the file, which all read later.
    Computed once: a resumed run compares with the model that it began with, not with the one that it has.
    """
    samples = [sample for unit in units for sample in unit]
    digest = hashlib.sha256(repr([list(sample.ids) for sample in samples]).encode()).hexdigest()
    if path.exists():
        stored = load_file(str(path))
        if bytes(stored["digest"]).hex() != digest:
            raise ShunterError("the kept log-probabilities are of other pairs", where=str(path))
        flat = stored["reference"]
    else:
        flat = np.concatenate([*of_each(scorer, samples, tokens), np.zeros(0)])
        if keep:
            aside = path.with_suffix(".tmp")
            kept = {"reference": flat, "digest": np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)}
            save_file(kept, str(aside))
            os.replace(aside, path)
    borders = np.cumsum([sum(sample.wrote) for sample in samples])
    parts = np.split(flat, borders[:-1]) if samples else []
    known = [
        Sample(sample.ids, sample.wrote, {**sample.known, "reference": part})
        for sample, part in zip(samples, parts, strict=True)
    ]
    return [(known[i], known[i + 1]) for i in range(0, len(known), 2)]


def of_each(
    scorer: Scorer,
    samples: Sequence[Sample],
    tokens: int,
    what: str = "logprob",
    cut: Callable[[Sequence[Sample]], Sequence[Answers]] | None = None,
) -> list[Array]:
    """Log-probability or value of each learnt token of each sample, without gradients. cut: into
    micro-batches; default: of about `tokens` tokens, a row for each sample."""
    # A sample's number goes with it through the cutting.
    marked = [Sample(s.ids, s.wrote, {"at": np.full(sum(s.wrote), float(i))}) for i, s in enumerate(samples)]
    found: list[Array] = [np.zeros(0)] * len(samples)
    for batch in micro_batches([[each] for each in marked], tokens) if cut is None else cut(marked):
        with torch.no_grad():
            scores = scorer(batch, frozenset({what}))
        values = scores.logprob if what == "logprob" else scores.value
        assert values is not None
        numbers = values.double().cpu().numpy()
        for row in range(len(numbers)):
            mine = batch.targets[row] != IGNORE
            at, says = batch.known["at"][row][mine], numbers[row][mine]
            for number in np.unique(at):
                found[int(number)] = says[at == number]
    return found
