"""What a role of reinforcement learning costs on some devices, by the planner's cost model.

Learning and preparation are bound by what is computed: `shunter.plan.estimate` and `compute`. Writing is
bound by memory: each token reads the weights and the keys and values so far (arXiv 2409.19256, appendix C).
Simulated, not measured: tests compare it with nothing but itself. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import numpy as np

from shunter.layout.generation import Hybrid
from shunter.layout.grid import Grid
from shunter.models.footprint import BLOCK, cache_bytes, cache_tokens, copied_bytes
from shunter.models.spec import DecoderSpec
from shunter.plan import communication, estimate
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.mapping import Candidate
from shunter.plan.practice import Coefficients, Practice

FILL = 0.9  # share of the memory that keys and values may fill beside weights


@dataclass(frozen=True)
class Work:
    """What a role does in an iteration: writes answers, says something of them, learns from them."""

    spec: DecoderSpec
    writes: bool = False
    prepares: bool = True
    learns: bool = False


@dataclass(frozen=True)
class Load:
    """Rows of an iteration, tokens of a prompt and of an answer, and updates in which the rows are learnt.
    at_once: rows that a rank of our own engine writes side by side, with a copy of the weights in another
    order where `shunter.models.weights` has one; 0: as many as memory holds, without. group: rows that begin
    with one prompt, which is read once for them."""

    batch: int
    prompt: int
    answer: int
    updates: int = 1
    at_once: int = 0
    group: int = 1

    @property
    def row(self) -> int:
        return self.prompt + self.answer


class Costs:
    """A `Profile` of roles on a cluster."""

    def __init__(
        self,
        works: Mapping[str, Work],
        load: Load,
        fabric: Fabric,
        practice: Practice,
        coefficients: Coefficients | None = None,
        *,
        cut: bool = True,
    ) -> None:
        """cut: layouts with stages and parts are looked at; else copies alone."""
        self.works, self.load, self.fabric = works, load, fabric
        self.practice, self.cut = practice, cut
        self.coefficients = coefficients or Coefficients()
        self.memory = fabric.memory
        self._kept = cache(self._candidates)

    def candidates(self, role: str, devices: int) -> Sequence[Candidate]:
        """See Profile."""
        return self._kept(role, devices)

    def _candidates(self, role: str, devices: int) -> tuple[Candidate, ...]:
        work = self.works[role]
        layouts = list(self._layouts(work.spec, devices))
        if not layouts:
            return ()
        question = Question(
            work.spec, self.fabric, self.load.batch, self.load.row, self.practice, self.coefficients
        )
        axis = "fsdp" if self.practice.sharding == "all" and self.cut else "dp"
        each = [
            Choices.one(Grid(pp=it.p, tp=it.t, **{axis: it.d}), 1, recompute=self.practice.recompute[-1])
            for it in layouts
        ]
        choices = Choices.of(np.stack([_line(choice) for choice in each]))
        return tuple(self._all(work, question, choices, layouts))

    def _layouts(self, spec: DecoderSpec, devices: int) -> list[Hybrid]:
        if devices > self.load.batch and not self.cut:
            return []
        found = []
        for t in _divisors(devices if self.cut else 1):
            if t > self.fabric.block or spec.num_heads % t:
                continue
            for p in _divisors(devices // t if self.cut else 1):
                d = devices // (p * t)
                if spec.num_layers % p == 0 and d <= self.load.batch:
                    found.append(Hybrid(p, t, d, 1, 1))
        return found

    def _all(
        self, work: Work, question: Question, choices: Choices, layouts: Sequence[Hybrid]
    ) -> list[Candidate]:
        spec, practice = work.spec, self.practice
        device = self.fabric.device
        found = estimate.costs(question, choices, device)
        micro = choices.microbatches(question.batch).astype(float)
        stages = choices.pp.astype(float)
        forward = (
            spec.num_layers * found.dense.forward.both + found.embedding.forward + found.head.forward
        ) / stages
        forward = forward * (micro + stages - 1)
        part = replace(question, batch=max(1, question.batch // self.load.updates))
        learning = estimate.estimate(part, choices) if work.learns else None
        candidates = []
        for index, layout in enumerate(layouts):
            parts = layout.p * layout.t
            weights = spec.num_parameters / parts
            seconds: dict[str, float] = {}
            # For scoring: weights as products take them, and a row's activations, which are few beside them.
            held = needed = weights * practice.compute
            if work.prepares:
                seconds["preparation"] = float(forward[index])
            if learning is not None:
                seconds["learning"] = self.load.updates * float(learning.seconds[index])
                needed = float(learning.bytes[index])
                cut = layout.d if practice.sharding == "all" and self.cut else 1
                held = weights / cut * (practice.weights + practice.optimizer)
            if work.writes:
                for tg in _divisors(layout.t):
                    narrow = replace(layout, tg=tg)
                    written = self._writing(spec, narrow, held)
                    if written is not None:
                        least = held + spec.num_parameters * practice.compute / tg
                        least += sum(self._engine(spec, narrow))
                        candidates.append(
                            Candidate(narrow, {**seconds, "writing": written}, held, max(needed, least))
                        )
            else:
                candidates.append(Candidate(layout, seconds, held, needed))
        return candidates

    def _writing(self, spec: DecoderSpec, layout: Hybrid, held: float) -> float | None:
        """Seconds to change the weights' layout and to write a batch; None where the weights do not fit."""
        load, size = self.load, self.practice.compute
        weights = spec.num_parameters * size / layout.tg
        keys = max(spec.num_kv_heads / layout.tg, 1.0)
        row = 2 * spec.num_layers * keys * spec.head_dim * size * load.row  # bytes of a whole text
        cache, copy = self._engine(spec, layout)
        room = FILL * self.memory - held - weights - copy
        rows = ceil(load.batch / layout.copies)
        if room < max(row, cache):
            return None
        together = min(rows, int(room // row), load.at_once or rows)
        waves = ceil(rows / together)
        bandwidth = self.fabric.device.memory_bandwidth * self.coefficients["memory"]
        mean = row * (load.prompt + load.answer / 2) / load.row * together
        token = (weights + mean) / bandwidth
        one, group = np.array([1]), np.array([layout.tg])
        if layout.tg > 1:
            question = Question(spec, self.fabric, 1, 1, self.practice, self.coefficients)
            sums = 2 * communication.ring(question, one, group, np.array([float(size * spec.dim * together)]))
            token += 2 * spec.num_layers * float(sums[0])
        # The prompts: what a pass over them computes, shared by the ranks of a copy.
        rates = max(each.peak for each in self.fabric.device.flops.values())
        reading = (
            2.0 * spec.num_parameters * load.prompt * ceil(rows / load.group) / (layout.tg * 0.5 * rates)
        )
        return waves * load.answer * token + reading + self._change(spec, layout)

    def _engine(self, spec: DecoderSpec, layout: Hybrid) -> tuple[float, float]:
        """Bytes of our own engine on a rank: of its cache, and of its copy of the weights."""
        load, size = self.load, self.practice.compute
        if not load.at_once:
            return 0.0, 0.0
        side = min(load.at_once, ceil(load.batch / layout.copies))
        copy = copied_bytes(spec, size) if self.fabric.device.type == "cpu" and size == 4 else 0.0
        return cache_bytes(spec, cache_tokens(side, load.row), BLOCK, size), copy

    def _change(self, spec: DecoderSpec, layout: Hybrid) -> float:
        """Seconds in which the parts to write with come together."""
        members = layout.micro
        if members == 1:
            return 0.0
        size = spec.num_parameters * self.practice.compute / layout.tg
        _, bandwidth = self.fabric.wire(np.array([1]), np.array([members]))
        return size * (members - 1) / members / (float(bandwidth[0]) * self.coefficients.ring)


def _line(choice: Choices) -> np.ndarray:
    return np.array([getattr(choice, name)[0] for name in Choices.__dataclass_fields__])


def _divisors(number: int) -> list[int]:
    return [degree for degree in range(1, number + 1) if number % degree == 0]
