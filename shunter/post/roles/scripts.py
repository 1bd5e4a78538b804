"""Algorithms as scripts of a few lines over roles. Each is run by one process, and yields what a step tells.

A script knows neither how many processes there are nor who shares which: that is the placement's. What it
calls returns at once, so roles on different pools work side by side as far as their inputs let them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shunter.post.roles.flow import Future, Group

Step = Mapping[str, Future]


@dataclass
class Cast:
    """The roles of a script; a script needs some of them."""

    prompts: Any
    actor: Any
    judge: Any
    reward: Any
    reference: Any = None
    critic: Any = None
    writer: Any = None
    cost: Any = None
    cost_critic: Any = None

    @classmethod
    def of(cls, groups: Mapping[str, Group]) -> Cast:
        """By their names."""
        return cls(**{name: group for name, group in groups.items() if name in cls.__dataclass_fields__})

    def far(self, written: Future) -> Future | None:
        """What the reference says of answers; None where nobody asks it."""
        return None if self.reference is None else self.reference.logprobs(written)


@dataclass(frozen=True)
class Updates:
    """How often a step's answers are learnt from: `epochs` times, in `parts` parts with an update each."""

    epochs: int = 1
    parts: int = 1

    def of(self, role: Any, judged: Future, step: int) -> Future:
        """All updates of a role; the first of them, which sees the weights that wrote."""
        calls = [
            role.update(judged, step=step, epoch=epoch, part=part, parts=self.parts)
            for epoch in range(self.epochs)
            for part in range(self.parts)
        ]
        first: Future = calls[0]
        return first


ONCE = Updates()
Asked = Callable[[int], tuple[Future, Future]]  # a step's prompts, and its answers


def in_turns(cast: Cast) -> Asked:
    """The actor writes when its step has come."""

    def rows(step: int) -> tuple[Future, Future]:
        asked = cast.prompts.take(step=step)
        return asked, cast.actor.generate(asked, step=step)

    return rows


class Soon:
    """A role that is asked about answers as soon as the writer is, not when the script comes to them: then
    it works while the actor learns from those before. The script, which asks once a step, gets what was
    called for."""

    def __init__(self, role: Any, operation: str) -> None:
        self._role, self._operation = role, operation
        self._called: deque[Future] = deque()

    def ask(self, *given: Future) -> None:
        """Of the next step's answers."""
        self._called.append(getattr(self._role, self._operation)(*given))

    def __getattr__(self, name: str) -> Any:
        if name == self._operation:
            return lambda *given: self._called.popleft()
        return getattr(self._role, name)


class Ahead:
    """The writer writes while the actor learns: answers of step k with the weights of step k - staleness
    (arXiv 2507.01663, section 4). Calls reach it in order, so it loads weights between two steps.

    cast: for the script. Rewards and reference are asked as soon as the writer is, unless they are with the
    actor: its processes carry calls out in order, and would wait for the writer before they learn."""

    def __init__(self, cast: Cast, staleness: int, steps: int) -> None:
        self.staleness, self.steps = staleness, steps
        self._asked: dict[int, tuple[Future, Future]] = {}
        asked = {"reward": "grade", "reference": "logprobs"}
        there = {name: role for name in asked if (role := getattr(cast, name)) is not None}
        self._soon = {
            name: Soon(role, asked[name]) for name, role in there.items() if role.pool != cast.actor.pool
        }
        self.cast = replace(cast, **self._soon)

    def begin(self, number: int) -> None:
        """With the weights of step `number`."""
        self.cast.writer.load(self.cast.actor.weights())
        for step in range(number, min(number + self.staleness + 1, self.steps)):
            self._ask(step)

    def after(self, number: int) -> None:
        """The updates of the step before `number` are called: hand their weights on, and have the step
        written that they may write. Waits until those updates are done."""
        weights = self.cast.actor.weights()
        if number + self.staleness < self.steps:
            self.cast.writer.load(weights)
            self._ask(number + self.staleness)
        weights.wait()

    def rows(self, step: int) -> tuple[Future, Future]:
        """What was asked for."""
        return self._asked.pop(step)

    def settle(self, number: int) -> None:
        """Until all is written that weights before those of step `number` write: a later attempt has not
        got them."""
        for step, (_, written) in self._asked.items():
            if step < number + self.staleness:
                written.wait()

    def _ask(self, step: int) -> None:
        asked = self.cast.prompts.take(step=step)
        written = self.cast.writer.generate(asked, step=step)
        self._asked[step] = asked, written
        if "reference" in self._soon:
            self._soon["reference"].ask(written)
        if "reward" in self._soon:
            self._soon["reward"].ask(asked, written)


def grpo(cast: Cast, steps: range, updates: Updates = ONCE, rows: Asked | None = None) -> Iterator[Step]:
    """Group-relative advantages, and those of all algorithms without a value model (arXiv 2402.03300)."""
    for step in steps:
        asked, written = (rows or in_turns(cast))(step)
        far = cast.far(written)
        graded = cast.reward.grade(asked, written)
        judged = cast.judge.advantages(written, graded, far)
        learnt = updates.of(cast.actor, judged, step)
        yield {"actor": learnt, "judge": judged, "reward": graded, "written": written, "asked": asked}


def ppo(cast: Cast, steps: range, updates: Updates = ONCE, rows: Asked | None = None) -> Iterator[Step]:
    """Advantages from a value model (arXiv 1707.06347, with the penalty of 2203.02155 in the reward)."""
    for step in steps:
        asked, written = (rows or in_turns(cast))(step)
        far = cast.far(written)
        values = cast.critic.values(written)
        graded = cast.reward.grade(asked, written)
        judged = cast.judge.advantages(written, graded, far, values)
        critic = updates.of(cast.critic, judged, step)
        learnt = updates.of(cast.actor, judged, step)
        yield {
            "actor": learnt,
            "critic": critic,
            "judge": judged,
            "reward": graded,
            "written": written,
            "asked": asked,
        }


def remax(cast: Cast, steps: range, updates: Updates = ONCE) -> Iterator[Step]:
    """The likeliest answer's reward as a baseline, in place of a value model (arXiv 2310.10505)."""
    for step in steps:
        asked = cast.prompts.take(step=step)
        written = cast.actor.generate(asked, step=step)
        likeliest = cast.actor.generate(asked, step=step, greedy=True)
        far = cast.far(written)
        base = cast.reward.grade(asked, likeliest)
        graded = cast.reward.grade(asked, written)
        judged = cast.judge.above_greedy(written, graded, base, far)
        learnt = updates.of(cast.actor, judged, step)
        yield {"actor": learnt, "reward": graded, "written": written, "asked": asked}


def safe(cast: Cast, steps: range, *, limit: float, rate: float, weight: float = 1.0) -> Iterator[Step]:
    """PPO with a cost whose mean is to stay below `limit`; its weight grows while it does not."""
    for step in steps:
        asked = cast.prompts.take(step=step)
        written = cast.actor.generate(asked, step=step)
        far = cast.far(written)
        values, costs = cast.critic.values(written), cast.cost_critic.values(written)
        graded, costly = cast.reward.grade(asked, written), cast.cost.grade(asked, written)
        judged = cast.judge.safe(written, graded, costly, far, values, costs, weight=weight)
        critic = cast.critic.update(judged, step=step)
        cost_critic = cast.cost_critic.update(cast.judge.cost(judged), step=step)
        learnt = cast.actor.update(judged, step=step)
        yield {
            "actor": learnt,
            "critic": critic,
            "cost_critic": cost_critic,
            "reward": graded,
            "cost": costly,
        }
        weight = max(0.0, weight + rate * (costly.told()["reward"] - limit))


SCRIPTS = {"grpo": grpo, "ppo": ppo, "remax": remax}
