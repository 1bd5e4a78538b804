"""What steps of learning from answers were like, and what they took: for the account after the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from shunter.generate.rollout import Rollout
from shunter.post.batch import ROUND_WIDTH, Answers, Sample
from shunter.record.memory import peak_rss, reset_peak


@dataclass
class Shape:
    """Of this process's updates, all together: their number, micro-batches, rows, tokens with padding, and
    targets.

    widest: rows, their tokens, and targets of the micro-batch with most tokens; shared: of that, answers that
    share a row at most; 0: each has its own. reference: seconds and tokens of a pass before them, where this
    attempt has made it.
    """

    steps: int = 0
    batches: int = 0
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    widest: tuple[int, int, int] = (0, 0, 0)
    shared: int = 0
    reference: tuple[float, int] | None = None

    def add(self, batches: Sequence[Answers]) -> None:
        """One more update."""
        self.steps += 1
        self.part(batches)

    def part(self, batches: Sequence[Answers]) -> None:
        """Micro-batches of an update that is counted when it is made."""
        self.batches += len(batches)
        for batch in batches:
            self.rows += len(batch.tokens)
            self.tokens += batch.tokens.size
            self.targets += batch.num_valid
            rows, width = batch.tokens.shape
            if rows * width > self.widest[0] * self.widest[1]:
                self.widest = (rows, width, batch.num_valid)
                self.shared = int(batch.segments.max()) if batch.shared else 0


@dataclass
class Phases:
    """Of steps of reinforcement learning, all together: seconds by phase, answers and their tokens, tokens of
    their prompts, prompts that differ within a step, the steps' longest answers, and tokens that were passed
    forward to prepare (a reference, a critic).

    last: seconds of the last step's phases. updates: of the policy; taught: of a critic. resident: whether
    the memory that counts is this process's; then peaks: bytes of it at most, by phase, where the system
    tells. began: bytes of it before there was a model. writer: bytes at most of a process that writes.
    """

    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    written: int = 0
    prompts: int = 0
    asked: int = 0
    longest: int = 0
    prepared: int = 0
    updates: Shape = field(default_factory=Shape)
    taught: int = 0
    resident: bool = False
    peaks: dict[str, int] = field(default_factory=dict)
    began: int = 0
    writer: int = 0

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A phase, or a part of it."""
        begin, told = time.perf_counter(), self.resident and reset_peak()
        try:
            yield
        finally:
            if told:
                self.peaks[name] = max(self.peaks.get(name, 0), peak_rss())
            spent = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self.last[name] = self.last.get(name, 0.0) + spent

    def wrote(self, done: Sequence[Rollout]) -> None:
        """One more step's answers."""
        self.steps += 1
        self.answers += len(done)
        self.written += sum(len(one.ids) for one in done)
        self.prompts += sum(len(one.prompt) for one in done)
        self.asked += len({tuple(one.prompt) for one in done})
        self.longest += max((len(one.ids) for one in done), default=0)


def padded(samples: Sequence[Sample]) -> int:
    """Tokens of samples that share rows with others of like length."""
    return sum(-(-max(1, len(it.ids) - 1) // ROUND_WIDTH) * ROUND_WIDTH for it in samples)
