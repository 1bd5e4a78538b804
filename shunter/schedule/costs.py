"""What the simulator needs: seconds of each stage's operations, and links between ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shunter.schedule.action import BACKWARD, FORWARD, INPUT, RECOMPUTE, WEIGHT


@dataclass(frozen=True)
class Costs:
    """Seconds (or any other unit of time) of each operation on each stage; operations unknown here cost 0.

    A whole backward costs both of its halves unless it is given, and a recomputation its forward.
    parts: the same of (operation, stage, part), of parts of stages that do something of their own.
    """

    seconds: Mapping[tuple[str, int], float]
    parts: Mapping[tuple[str, int, str], float] = field(default_factory=dict)

    def of(self, op: str, stage: int, part: str = "") -> float:
        found = self.parts.get((op, stage, part)) if part else self.seconds.get((op, stage))
        if found is None:
            if op == BACKWARD:
                return self.of(INPUT, stage, part) + self.of(WEIGHT, stage, part)
            if op == RECOMPUTE:
                return self.of(FORWARD, stage, part)
            return 0.0
        return found

    @classmethod
    def even(
        cls,
        placement: tuple[int, ...],
        forward: float = 1.0,
        input_grad: float = 1.0,
        weight_grad: float = 1.0,
    ) -> Costs:
        """Costs of a rank, split evenly over its stages."""
        seconds: dict[tuple[str, int], float] = {}
        for stage, rank in enumerate(placement):
            share = 1 / placement.count(rank)
            seconds[FORWARD, stage] = forward * share
            seconds[INPUT, stage] = input_grad * share
            seconds[WEIGHT, stage] = weight_grad * share
        return cls(seconds)


@dataclass(frozen=True)
class Links:
    """How long a message takes from one rank to another.

    latency:  seconds between leaving and arriving, during which the link takes further messages.
    occupied: seconds for which a message keeps its link (bytes / bandwidth); the next one waits.
    between:  (from, to) -> (latency, occupied), for pairs that differ.
    blocking: both sides compute nothing while a message passes.
    sizes:    payload -> bytes; then `occupied` is for each byte, and a payload without a size takes none.
    """

    latency: float = 0.0
    occupied: float = 0.0
    between: Mapping[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    blocking: bool = False
    sizes: Mapping[str, float] = field(default_factory=dict)

    def of(self, source: int, target: int, payload: str = "") -> tuple[float, float]:
        latency, occupied = self.between.get((source, target), (self.latency, self.occupied))
        return latency, occupied * self.sizes.get(payload, 0.0) if self.sizes else occupied
