"""`rl` whose answers are written by older weights, through the store: the same bits with an age of 0, no
token too old, each row once, also over kills.

What this cannot show: that it is faster (`python -m bench.asynchronous`), and that a policy learns as well
from older answers as from new ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.generate.rollout import Rollout
from shunter.jobs import rl_parts
from shunter.post import delayed, writers
from shunter.post import reinforce as plain
from shunter.post.journal import Journal
from shunter.post.rewards import Grader
from shunter.post.writers import Here
from shunter.recipe.job import Stopped
from shunter.record import events, points
from tests.jobs.conftest import Still, Work
from tests.jobs.test_post_jobs import HOW as ANY
from tests.jobs.test_post_jobs import model, reinforce, talks, weights
from tests.jobs.test_post_kills import Killed

__all__ = ["model", "talks"]  # fixtures
HOW = {**ANY, "writer": "here"}
EXACT = {**HOW, "deterministic": True}


@contextmanager
def killed(point: str, step: int) -> Iterator[None]:
    """Inside, a training is killed at a point of a step, if it comes there."""

    def hook(name: str, facts: dict[str, Any]) -> None:
        if name == point and facts["step"] == step:
            raise Killed

    points.install(hook)
    try:
        yield
    except Killed:
        pass
    finally:
        points.install(None)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return events.read_metrics(out.parent / "log" / "events.jsonl")


@pytest.mark.parametrize(
    "policy",
    [
        {"algorithm": "grpo", "kl": 0.05, "updates": 2},
        pytest.param({"algorithm": "ppo"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_an_age_of_zero_is_as_without_a_store(
    work: Work, model: Path, talks: Path, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = reinforce(work, model, talks, name="whole", how=EXACT, policy=policy)
    monkeypatch.setattr(plain, "Reinforcement", partial(delayed.Delayed, staleness=0))
    out, metrics = reinforce(work, model, talks, name="through", how=EXACT, policy=policy)
    assert weights(out) == weights(whole)
    assert (out / "rewards.json").read_text() == (whole / "rewards.json").read_text()
    same = [[{n: row[n] for n in ("rl/reward", "rl/staleness", "rl/length")} for row in rows_of(o)]
            for o in (out, whole)]  # fmt: skip
    assert same[0] == same[1]
    assert 0 < metrics["largest_gap"] < 1e-5


@pytest.mark.parametrize("bound", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_age_is_the_bound_and_never_more(work: Work, model: Path, talks: Path, bound: int) -> None:
    out, metrics = reinforce(work, model, talks, staleness=bound, how=EXACT)
    rows = rows_of(out)
    assert [row["rl/staleness"] for row in rows] == [min(step, bound) for step in range(5)]
    assert 0 < metrics["largest_gap"] < 1e-5, "held against the weights that wrote"
    assert rows[-1]["rl/off_policy"] > 10 * metrics["largest_gap"]


def ledger(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[int, str]]]:
    """What each step was learnt from, last: place and prompt of each row."""
    had: dict[int, list[tuple[int, str]]] = {}
    learn = delayed.Delayed._learn

    def noted(self: delayed.Delayed, number: int, samples: Any) -> Any:
        had[number] = [(row["number"], str(row["answer"].prompt)) for row in self._taken]
        assert {row["step"] for row in self._taken} == {number}
        told = learn(self, number, samples)
        assert self._oldest <= self.staleness * self.config.updates * self.config.epochs
        return told

    monkeypatch.setattr(delayed.Delayed, "_learn", noted)
    return had


@pytest.mark.parametrize(
    ("point", "steps"),
    [
        ("train.update", (1, 3, 4)),
        pytest.param("checkpoint.rename", (2, 4, 6), marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_the_bits_are_the_same(
    work: Work, model: Path, talks: Path, point: str, steps: tuple[int, ...]
) -> None:
    more: dict[str, Any] = {"staleness": 1, "how": EXACT, "train": {"steps": 6, "lr": 1e-3}}
    whole, _ = reinforce(work, model, talks, name="whole", **more)
    for at in steps:
        with killed(point, at):
            reinforce(work, model, talks, name="cut", **more)
    with pytest.raises(Stopped):
        reinforce(work, model, talks, name="cut", control=Still(stop_after=1), **more)
    out, _ = reinforce(work, model, talks, name="cut", **more)
    assert weights(out) == weights(whole)
    assert (out / "rewards.json").read_text() == (whole / "rewards.json").read_text()


@pytest.mark.parametrize("bound", [1, pytest.param(3, marks=pytest.mark.long)])
def test_killed_anywhere_each_row_is_learnt_from_once_and_what_was_written_is_not_lost(
    work: Work, model: Path, talks: Path, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    had = ledger(monkeypatch)
    more: dict[str, Any] = {"staleness": bound, "how": HOW, "train": {"steps": 6, "lr": 1e-3}}
    for at in (1, 3):
        with killed("train.step", at):
            reinforce(work, model, talks, **more)
    written: list[int] = []
    submit = plain.RolloutEngine.submit
    monkeypatch.setattr(
        plain.RolloutEngine, "submit", lambda self, *a, **k: written.append(1) or submit(self, *a, **k)
    )
    reinforce(work, model, talks, **more)
    # Killed in step 3, when all to step 3 + bound was written, in the store that was saved or the journal.
    assert len(written) == 12 * max(0, 5 - (3 + bound))
    assert sorted(had) == list(range(6))
    asked = [prompt for step in range(6) for _, prompt in had[step]]
    assert all([at for at, _ in had[step]] == list(range(12)) for step in range(6))
    # 12 prompts of which 3 are asked in a step, 4 times each: one epoch and a half.
    assert {prompt: asked[:48].count(prompt) for prompt in asked[:48]} == dict.fromkeys(asked[:48], 4)
    assert len(set(asked[:48])) == 12


@pytest.mark.parametrize("bound", [0, 1])
def test_what_was_being_written_goes_on_after_a_kill(
    work: Work, model: Path, talks: Path, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are those of a run that nobody killed; also without a store."""
    more: dict[str, Any] = {"staleness": bound, "how": HOW, "max_new_tokens": 20}
    whole, _ = reinforce(work, model, talks, name="whole", train={"steps": 1, "lr": 1e-3}, **more)
    monkeypatch.setattr(writers, "KEEP", 0.0)
    step, steps, prompts = plain.RolloutEngine.step, [0], list[list[int]]()

    def cut(self: Any) -> None:
        steps[0] += 1
        if steps[0] == 10:
            raise Killed
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(plain.RolloutEngine, "step", cut)
        with pytest.raises(Killed):
            reinforce(work, model, talks, train={"steps": 1, "lr": 1e-3}, **more)
    resume = plain.RolloutEngine.resume

    def noted(self: Any, begun: Rollout, stream: int | None = None) -> int:
        prompts.append(list(begun.ids))
        return resume(self, begun, stream)

    monkeypatch.setattr(plain.RolloutEngine, "resume", noted)
    out, metrics = reinforce(work, model, talks, train={"steps": 1, "lr": 1e-3}, **more)
    assert prompts
    assert {len(ids) for ids in prompts} == {9}, "a token in each of nine steps"
    assert (out / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text().replace(
        '"whole"', '"rl"'
    )
    assert metrics["largest_gap"] < 1e-5


def graded(lessons: delayed.Delayed) -> bool:
    """Whether all whole groups that are there are; where bits must be the same, whole steps alone are."""
    groups: dict[int, list[bool]] = {}
    for cells in lessons.store.rows():
        groups.setdefault(cells["group"], []).append("reward" in cells)
    return (
        lessons.exact
        or lessons.grader.computes
        or all(all(each) for each in groups.values() if len(each) == lessons.group)
    )


def until(there: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what another thread does. Raises AssertionError where it does not."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it is not done meanwhile"
        time.sleep(0.002)


class Dribble(Here):
    """Hands over five answers at a time, and when it is waited for alone: as a process that is slow. Unless
    bits must be the same, not before whole groups among those are graded."""

    def __init__(self, lessons: delayed.Delayed) -> None:
        super().__init__(lessons.engine, lessons.seed, lessons.journal, lessons.exact, self.put)
        self.lessons, self.late = lessons, list[tuple[int, int, Rollout]]()

    def put(self, step: int, fresh: Mapping[int, Rollout]) -> None:
        self.late += [(step, at, one) for at, one in fresh.items()]

    def listen(self, wait: bool) -> None:
        until(lambda: graded(self.lessons))
        for step, at, one in self.late[: 5 * wait]:
            self.lessons.hear(step, {at: one})
        del self.late[: 5 * wait]


class Between(Here):
    """Writes token by token while it is waited for, and takes new weights between two, as a process does: it
    is in the midst of answers when a step is learnt from. Not while something is graded, lest it be done."""

    def __init__(self, lessons: delayed.Delayed) -> None:
        super().__init__(lessons.engine, lessons.seed, lessons.journal, lessons.exact, lessons.hear)
        self.places, self.lessons = dict[int, tuple[int, int]](), lessons

    def ask(self, step: int, prompts: Mapping[int, Any], begun: Mapping[int, Rollout]) -> None:
        asked = writers.submit(self.engine, self.seed, step, prompts, begun)
        self.places |= {number: (step, at) for number, at in asked.items()}

    def listen(self, wait: bool) -> None:
        until(lambda: graded(self.lessons))
        while wait and not self.engine.finished:
            self.engine.step()
        for one in self.engine.finished:
            step, at = self.places[one.number]
            self.journal.write(step, {at: one})
            self.hear(step, {at: one})
        self.engine.finished.clear()
        for one in self.engine.begun:
            step, at = self.places[one.number]
            self.journal.keep(step, {at: one})


@pytest.mark.parametrize("idle", [False, True])
def test_what_weights_of_two_versions_wrote_is_kept_over_a_kill(
    work: Work, model: Path, talks: Path, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is finished and each part that is begun, up to the versions that the steps came to have; also
    where the next attempt makes fewer updates (`idle`), so that they are newer than its own."""
    monkeypatch.setattr(rl_parts, "beside", lambda *given: Between(given[-1]))
    more: dict[str, Any] = {"staleness": 1, "max_new_tokens": 20, "train": {"steps": 5, "lr": 1e-3}}
    more["how"] = {**HOW, "writer": "process", "checkpoint_every": 5}
    with killed("train.step", 2):
        reinforce(work, model, talks, **more)
    folder = next(talks.parents[1].glob("made/rl/**/rollouts"))
    journal = Journal(folder)
    whole = {step: journal.read(step, 9, 0) for step in range(5)}
    parts = {step: journal.begun(step, 9, 0) for step in range(5)}
    had = [one for step in range(5) for one in (*whole[step].values(), *parts[step].values())]
    assert any(len(set(one.versions)) > 1 for one in had)
    assert any(min(one.versions) > 0 for one in had)
    assert sum(map(len, parts.values())) > 0

    asked: dict[int, dict[int, Rollout]] = {}
    ask, learn = Between.ask, plain.Reinforcement._learn

    def noted(self: Between, step: int, prompts: Mapping[int, Any], begun: Mapping[int, Rollout]) -> None:
        asked[step] = {at: begun.get(at, Rollout()) for at in prompts}
        ask(self, step, prompts, begun)

    def less(self: Any, number: int, samples: Any) -> dict[str, float]:
        if idle and number == 0:
            return {"rl/gap": 0.0, "rl/largest_gap": 0.0}
        return learn(self, number, samples)

    monkeypatch.setattr(Between, "ask", noted)
    monkeypatch.setattr(plain.Reinforcement, "_learn", less)
    out, _ = reinforce(work, model, talks, **more)
    for step in range(5):
        left = asked.get(step, {})
        if not idle or step < 2:  # asked for before a step has turned out to be idle
            assert left.keys() == set(range(12)) - whole[step].keys()
            assert {at: one.ids for at, one in left.items() if one.ids} == {
                at: one.ids for at, one in parts[step].items()
            }
    assert min(row["rl/staleness"] for row in rows_of(out)) >= 0


@pytest.fixture
def dribble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_parts, "beside", lambda *given: Dribble(given[-1]))


def test_parts_of_steps_over_kills_change_no_bit(work: Work, model: Path, talks: Path, dribble: None) -> None:
    """A checkpoint waits for what older weights write, and holds no part of a step."""
    more: dict[str, Any] = {"staleness": 1, "train": {"steps": 6, "lr": 1e-3}}
    whole, _ = reinforce(work, model, talks, name="whole", how=EXACT, **more)
    more["how"] = {**EXACT, "writer": "process"}
    for at in (1, 3, 4):
        with killed("train.step", at):
            reinforce(work, model, talks, name="cut", **more)
    out, _ = reinforce(work, model, talks, name="cut", **more)
    assert weights(out) == weights(whole)


def test_rewards_are_given_before_a_step_is_written_and_over_kills_each_row_is_learnt_from_once(
    work: Work, model: Path, talks: Path, dribble: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    had, graded = ledger(monkeypatch), list[int]()
    grade = Grader.grade
    monkeypatch.setattr(Grader, "grade", lambda self, items: graded.append(len(items)) or grade(self, items))
    more: dict[str, Any] = {"staleness": 1, "train": {"steps": 6, "lr": 1e-3}}
    more["how"] = {**HOW, "writer": "process"}
    for at in (1, 3, 4):
        with killed("train.step", at):
            reinforce(work, model, talks, **more)
    reinforce(work, model, talks, **more)
    assert {count % 4 for count in graded} == {0}, "groups of 4 answers are graded together"
    assert min(graded) < 12, "a part of a step's 12, before the others were there"
    assert all([at for at, _ in had[step]] == list(range(12)) for step in range(6))


def test_older_weights_under_a_newer_ones_name_stop_the_run(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Frozen(plain.RolloutEngine):
        """Writes with the weights that training began with."""

        def __init__(self, model: Any, *given: Any, **more: Any) -> None:
            super().__init__(deepcopy(model), *given, **more)

    monkeypatch.setattr(plain, "RolloutEngine", Frozen)
    how = {**HOW, "log_every": 1}
    with pytest.raises(ShunterError, match="trainer and generator differ by"):
        reinforce(work, model, talks, staleness=1, train={"steps": 4, "lr": 1e-4}, how=how)
    rows = events.read_metrics(next(talks.parents[1].glob("made/rl/log/events.jsonl")))
    assert [row["step"] for row in rows] == [1, 2], "in the third step, whose rows the second weights wrote"


def test_a_token_that_is_too_old_stops_the_run(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = plain.RolloutEngine.new_weights
    monkeypatch.setattr(plain.RolloutEngine, "new_weights", lambda self, version: new(self, 0))
    with pytest.raises(ShunterError, match="2 updates old, and may be 1 at most"):
        reinforce(work, model, talks, staleness=1, max_gap=9.0, how=HOW)


def test_without_the_gate_tokens_are_too_old(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mechanism broken on purpose: one step more is asked for than the bound allows."""
    advance = delayed.Delayed._advance

    def eager(self: delayed.Delayed, number: int, first: int) -> None:
        self.staleness += 1
        advance(self, number, first if first == number else first + 1)
        self.staleness -= 1
        self.floors = {step: count for step, count in self.floors.items() if step >= number - self.staleness}

    monkeypatch.setattr(delayed.Delayed, "_advance", eager)
    monkeypatch.setattr(delayed, "SampleStore", partial(roomy, delayed.SampleStore))
    with pytest.raises(ShunterError, match="2 updates old, and may be 1 at most"):
        reinforce(work, model, talks, staleness=1, how=HOW)


def roomy(kind: Any, *given: Any, capacity: int) -> Any:
    return kind(*given, capacity=capacity * 2)


def test_no_more_rows_than_the_bound_allows(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    close = delayed.Delayed.close
    monkeypatch.setattr(
        delayed.Delayed, "close", lambda self: most.append(self.store.most_live) or close(self)
    )
    reinforce(work, model, talks, staleness=2, how=HOW)
    assert most == [3 * 12]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"how": {**HOW, "writers": ["cpu"]}}, "set how.writer to process"),
        ({"how": {**EXACT, "writer": "process", "writers": ["cpu", "cpu"]}}, "several writers"),
        ({"how": {**ANY, "writers": ["gpu"]}}, "pattern"),
        ({"staleness": 0, "how": {**HOW, "placement": {"backend": "inline"}}}, "leave one of the two out"),
        ({"how": {**HOW, "swap": "steps"}}, "set how.writer to process"),
        ({"staleness": -1}, "greater than or equal to 0"),
    ],
)
def test_what_does_not_go_with_older_weights_is_refused(
    work: Work, model: Path, talks: Path, more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        reinforce(work, model, talks, **{"staleness": 1, **more})
