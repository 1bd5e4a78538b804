"""Rewards of answers: weighted sums of rules, with canaries in every batch.

A canary is an answer whose score is known. It is graded among the others; a grader that gives it another
score is broken, or was tampered with, and the run stops before anything is learnt from it.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.answers import last_number, value
from shunter.post import verifiers
from shunter.post.config import RewardConfig
from shunter.post.instructions import share
from shunter.post.patterns import Patterns

CANARY = "\x00canary"  # the prompt of one; no person's prompt begins so
RULE_SECONDS = 2.0  # of CPU time that a rule may take for one answer
TARGETS = "Look at the targets in the conversations that the job reads."


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside, after so many CPU seconds of this process; only in its main thread, where
    alone a signal can interrupt what runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {seconds:g} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(frozen=True)
class Item:
    """An answer to grade. prompt: what was asked, as text. target: what the data says of it. ids: of prompt
    and answer, for rules that read tokens. targets: instead of `target`, for the rules of these names; None:
    the data says nothing that this rule could compare with, so it is not asked."""

    prompt: str
    answer: str
    target: str
    finished: bool = True  # it ended by itself
    ids: Sequence[int] = ()
    targets: Mapping[str, str | None] = field(default_factory=dict)

    def seen_by(self, rule: str) -> Item | None:
        """As the rule of this name has it; None where it is not asked."""
        if rule not in self.targets:
            return self
        target = self.targets[rule]
        return None if target is None else replace(self, target=target)


@dataclass(frozen=True)
class Graded:
    """total: the weighted sum. parts: each rule's score before its weight, by name; where it could not grade,
    what counts for one. failed: of each rule that could not grade, what it said. unasked: rules that the data
    gives nothing to compare with."""

    total: float
    parts: Mapping[str, float]
    failed: Sequence[str] = field(default_factory=tuple)
    unasked: Sequence[str] = field(default_factory=tuple)


class Rule(Protocol):
    """One part of a reward. It grades a whole batch, so that work can be shared out."""

    name: str

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        """A score for each, or a sentence on why there is none."""

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        """Answers with known scores; `like` shows what targets look like."""


class Unbounded:
    """A rule whose scores may be any number; those of others are from 0 to 1. failed: the score that counts
    for an answer that it cannot grade, as nobody knows its worst."""

    failed: float = 0.0


def _worst(rule: Rule, weight: float) -> float:
    """The score that counts for an answer that a rule cannot grade. With 0 for all, an answer that makes a
    rule fail would escape what is taken from it by a weight below 0."""
    return rule.failed if isinstance(rule, Unbounded) else float(weight < 0)


TEXTS: Mapping[str, Callable[[str, str], float]] = {
    "exact": verifiers.exact, "contains": verifiers.contains, "f1": verifiers.f1,
}  # fmt: skip
Known = tuple[str, str, float]  # an answer, a target, and the score of the one for the other


class Verified:
    """A function of answer and target, applied one by one. mend: what people should do where it can grade
    nothing."""

    mend = TARGETS

    def __init__(
        self,
        name: str,
        verify: Callable[[str, str], float],
        known: Callable[[str], list[Known]] | None = None,
    ) -> None:
        """known: canaries, from the target of some answer; they hold whatever that is."""
        self.name, self.verify, self.known = name, verify, known

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        found: list[float | str] = []
        for item in items:
            try:
                with limited(RULE_SECONDS):
                    found.append(float(self.verify(item.answer, item.target)))
            except TimeoutError as error:
                found.append(str(error))
            except Exception as error:  # a rule on someone's data must not end a run
                found.append(f"{type(error).__name__}: {error}")
        return found

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        known = [] if self.known is None else self.known(like.target)
        return [(Item(like.prompt, answer, target), score) for answer, target, score in known]


class Matches:
    """The rule `format`: whether the whole answer, without white space at its ends, matches a pattern. A
    pattern that takes too long on an answer cannot grade it. Canaries are of a pattern of our own, which is
    matched where the person's is, whatever that is."""

    name = "format"
    mend = "Write its `pattern` so that it takes less time, without repetitions of repetitions."
    OWN = ("ab+", {"abb": 1.0, "aba": 0.0})

    def __init__(self, pattern: str) -> None:
        self.pattern, self.patterns = pattern, Patterns()

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        own, mine = self.OWN[0], self.pattern
        pairs = [(own if item.prompt == CANARY else mine, item.answer.strip()) for item in items]
        matched = self.patterns.match_all(pairs)
        return [one if isinstance(one, str) else float(one) for one in matched]

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        return [(Item(CANARY, answer, ""), score) for answer, score in self.OWN[1].items()]

    def close(self) -> None:
        """End the process that matches."""
        self.patterns.close()


class Grading(Protocol):
    """What training asks of whoever grades. failures: answers that a rule could not grade, by rule.
    canaries: how many were graded. Both are a part of a checkpoint."""

    failures: dict[str, int]
    canaries: int

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """What each answer is worth."""

    def ends(self) -> dict[str, int]:
        """How answers ended since the last call, by rule and end."""

    def close(self) -> None:
        """Give back what is held besides memory."""


class Grader:
    """All rules of a reward. failures: answers that a rule could not grade, by rule; they count as the worst
    that it gives (see `Unbounded` for those without one)."""

    def __init__(
        self,
        rules: Sequence[tuple[Rule, float]],
        *,
        unfinished: float | None = None,
        seed: int = 0,
        patient: bool = False,
    ) -> None:
        """rules: with weights. unfinished: the reward of an answer that was cut off, whatever it says.
        patient: a batch of which a rule can grade nothing is counted like others, and ends nothing."""
        if not rules:
            raise ShunterError("there is no reward", mend="Give at least one.")
        names = [rule.name for rule, _ in rules]
        if len(set(names)) < len(names):
            raise ShunterError(
                f"two rules have one name ({', '.join(names)})", mend="Give each a `name` of its own."
            )
        self.rules, self.unfinished, self.seed = rules, unfinished, seed
        self.patient = patient
        self.later = False  # failures are counted by `check`, of what is learnt from
        self.every = 0  # canaries ride once with so many answers, which come in parts; 0: with every batch
        self._asked: dict[str, int] = {}  # answers so far, by rule
        self.failures: dict[str, int] = {}
        self.canaries = 0
        self._ends: dict[str, int] = {}

    def close(self) -> None:
        """Give back what rules hold besides memory."""
        for rule, _ in self.rules:
            if callable(close := getattr(rule, "close", None)):
                close()

    @property
    def computes(self) -> bool:
        """Whether a rule computes with a model, as who learns does (`computes`)."""
        return any(getattr(rule, "computes", False) for rule, _ in self.rules)

    def ends(self) -> dict[str, int]:
        """How answers ended since the last call, by rule and end, of rules that tell (`told`)."""
        now = {
            f"{rule.name}_{how.replace(' ', '_')}": count
            for rule, _ in self.rules
            for how, count in dict(getattr(rule, "told", {})).items()  # a copy: another thread may grade
        }
        since = {name: count - self._ends.get(name, 0) for name, count in now.items()}
        self._ends = now
        return since

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """Raises ShunterError when a canary is graded wrongly, or a rule can grade nothing at all."""
        if not items:
            return []
        scores: dict[str, list[float | str]] = {}
        for rule, _ in self.rules:
            scores[rule.name] = self._applied(rule, items)
        worst = {rule.name: _worst(rule, weight) for rule, weight in self.rules}
        found = []
        for number, item in enumerate(items):
            each = {name: values[number] for name, values in scores.items()}
            parts = {name: value if isinstance(value, float) else worst[name] for name, value in each.items()}
            failed = [f"{name}: {value}" for name, value in each.items() if isinstance(value, str)]
            total = sum(weight * parts[rule.name] for rule, weight in self.rules)
            if not item.finished and self.unfinished is not None:
                total = self.unfinished
            unasked = [rule.name for rule, _ in self.rules if item.seen_by(rule.name) is None]
            found.append(Graded(total, parts, failed, unasked))
        return found

    def check(self, graded: Sequence[Graded]) -> None:
        """Raises ShunterError when a rule could grade none of those of these answers that it was asked about.
        They were graded in parts. Their failures are counted here with `later`: then each is, once, however
        often a crash had an answer graded."""
        for rule, _ in self.rules:
            begin = f"{rule.name}: "
            asked = [one for one in graded if rule.name not in one.unasked]
            failed = [each for one in asked for each in one.failed if each.startswith(begin)]
            if asked and len(failed) == len(asked):
                raise _ungraded(rule, failed[0].removeprefix(begin))
            if failed and self.later:
                self.failures[rule.name] = self.failures.get(rule.name, 0) + len(failed)

    def _applied(self, rule: Rule, items: Sequence[Item]) -> list[float | str]:
        """A score for each; 0 for those that the data gives the rule nothing to compare with."""
        seen = [item.seen_by(rule.name) for item in items]
        asked = [item for item in seen if item is not None]
        graded = iter(self._with_canaries(rule, asked) if asked else ())
        return [0.0 if item is None else next(graded) for item in seen]

    def _rides(self, rule: str, count: int) -> bool:
        """Whether canaries ride with so many more answers of a rule: once in `every`, anywhere in these."""
        begin = self._asked.get(rule, 0)
        end = self._asked[rule] = begin + count
        if not self.every:
            return True
        turns = range(begin // self.every, (end - 1) // self.every + 1)
        places = (t * self.every + derive_seed(self.seed, "rides", rule, t) % self.every for t in turns)
        return any(begin <= place < end for place in places)

    def _with_canaries(self, rule: Rule, items: Sequence[Item]) -> list[float | str]:
        known = rule.canaries(items[0]) if self._rides(rule.name, len(items)) else []
        # Anywhere among the others, so that nothing tells them apart by their place.
        mixed: list[tuple[Item, float | None]] = [(item, None) for item in items]
        for canary in known:
            place = derive_seed(self.seed, "canary", rule.name, self.canaries) % (len(mixed) + 1)
            mixed.insert(place, canary)
            self.canaries += 1
        graded = rule.grade([item for item, _ in mixed])
        if len(graded) != len(mixed):
            raise ShunterError(f"the reward {rule.name} gave {len(graded)} scores for {len(mixed)} answers")
        found: list[float | str] = []
        near = getattr(rule, "tolerance", 0.0)
        for (item, expected), score in zip(mixed, graded, strict=True):
            if expected is None:
                lost = isinstance(score, float) and not math.isfinite(score)
                found.append(f"the score is {score}, which is not a number" if lost else score)
            elif isinstance(score, str) or not math.isclose(score, expected, rel_tol=near, abs_tol=near):
                raise ShunterError(
                    f"the reward {rule.name} gave {score!r} to the answer {item.answer[:60]!r}, "
                    f"whose score is known to be {expected:g}",
                    mend="Its rule is broken, or was changed while it ran; nothing was learnt from it.",
                )
        failed = [score for score in found if isinstance(score, str)]
        if len(failed) == len(found) and not self.patient:
            raise _ungraded(rule, failed[0])
        if failed and not self.later:
            self.failures[rule.name] = self.failures.get(rule.name, 0) + len(failed)
        return found


def _ungraded(rule: Rule, why: str) -> ShunterError:
    return ShunterError(
        f"the reward {rule.name} could grade no answer of a step ({why})",
        mend=getattr(rule, "mend", TARGETS),
    )


def ungraded(prompts: Sequence[str], graded: Sequence[Graded]) -> str | None:
    """How many of these answers a rule could not grade, and the first; None: each was graded. prompts: the id
    of each answer's."""
    bad = [(prompt, one.failed[0]) for prompt, one in zip(prompts, graded, strict=True) if one.failed]
    if not bad:
        return None
    were = "answer was" if len(bad) == 1 else "answers were"
    prompt, why = bad[0]
    return f"{len(bad)} of {len(graded)} {were} not graded, the first to the prompt {prompt} ({why})"


def rule(config: RewardConfig) -> Rule:
    """The rule of a configuration that needs nothing but answer and target, under its name."""
    return named(_rule(config), config)


def named(made: Rule, config: RewardConfig) -> Rule:
    """The same rule, called as its configuration says."""
    made.name = config.label
    if isinstance(made, Unbounded):
        made.failed = config.failed
    return made


def _rule(config: RewardConfig) -> Rule:
    kind = config.kind
    if kind == "number":
        return Verified("number", _number, _known_numbers)
    if kind == "boxed":
        return Verified("boxed", verifiers.boxed, _known_boxed)
    if kind in TEXTS:
        verify = TEXTS[kind]
        return Verified(kind, verify, lambda t: [(t, t, 1.0)] + [("", t, 0.0)] * (verify("", t) < 1))
    if kind == "format":
        return Matches(config.pattern or "")
    if kind == "constraints":
        fixed = dict(config.constraints)

        def kept(answer: str, target: str) -> float:
            return verifiers.constraints(answer, fixed) if fixed else share(answer, target)

        demand = '{"no_commas": ""}'
        met = [] if fixed else [("a", demand, 1.0), ("a, b", demand, 0.0)]
        made = Verified("constraints", kept, lambda _: [("", demand, 0.0), *met])
        made.mend = "Look at the values of its `constraints`." if fixed else TARGETS
        return made
    raise ValueError(f"a reward of the kind {kind} needs more than a configuration")


def _number(answer: str, target: str) -> float:
    if value(target) is None:
        what = "no number" if last_number(target) is None else "a power or a long number, and no plain one"
        raise ValueError(f"the target has {what}")
    return verifiers.number(answer, target)


def _known_numbers(target: str) -> list[Known]:
    found = last_number(target) or "7"
    if value(found) is None:
        found = "7"
    return [(f"so {found}", found, 1.0), (f"{found}1", found, 0.0)]


def _known_boxed(_: str) -> list[Known]:
    # Not from the data: there, braces may not balance.
    return [(rf"\boxed{{{a}}}", "12", score) for a, score in (("12", 1.0), ("12+x", 0.0))] + [
        ("12", "12", 0.0)
    ]
