"""What ranks are asked between two steps: one message, and the same answers on all.

With ranks played one after the other: what this cannot show is that a broadcast arrives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shunter.train.world import Shared


@dataclass
class Asked:
    """A control that is asked to save once, and to stop."""

    stop: bool = False
    saves: int = 0

    def stop_requested(self) -> bool:
        return self.stop

    def take_save_request(self) -> bool:
        self.saves -= 1
        return self.saves >= 0


@dataclass
class Line:
    """A world of which rank 0's words are kept for the others."""

    rank: int
    said: list[int] = field(default_factory=list)
    heard: int = 0

    def first(self, value: int) -> int:
        if self.rank == 0:
            self.said.append(value)
            return value
        self.heard += 1
        return self.said[self.heard - 1]


def answers(control: Any, steps: int) -> list[tuple[bool, bool, bool]]:
    found = []
    for _ in range(steps):
        stop = control.stop_requested()
        found.append((stop, control.answer, control.take_save_request()))
    return found


def test_one_message_a_step_says_all_and_a_save_is_asked_for_once() -> None:
    line = Line(0)
    first = Shared(line, Asked(saves=1))  # type: ignore[arg-type]
    landed = iter([False, True, False])
    first.more = lambda: next(landed)
    told = answers(first, 3)
    assert told == [(False, False, True), (False, True, False), (False, False, False)]
    assert len(line.said) == 3
    other = Shared(Line(1, line.said), Asked(stop=True, saves=5))  # type: ignore[arg-type]
    assert answers(other, 3) == told  # whatever it was asked itself


def test_a_save_request_that_was_heard_and_not_taken_is_not_lost() -> None:
    shared = Shared(Line(0), Asked(saves=1))  # type: ignore[arg-type]
    assert not shared.stop_requested()
    assert not shared.stop_requested()
    assert shared.take_save_request()
    assert not shared.take_save_request()
