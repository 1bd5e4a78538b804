"""`rl` with its roles placed and a writer that is a step behind: it learns what it learns in one process.

What this cannot show: that the writer writes while the actor learns (the calls are made so; tests/post/roles
shows that pools work side by side), and that it is faster.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shunter.config.errors import ShunterError
from shunter.models.hf import load_model
from shunter.post.roles import actor as actors
from shunter.post.roles.actor import Actor
from shunter.post.roles.rows import Rows
from shunter.post.roles.scripts import Ahead, Cast, grpo
from shunter.post.roles.writes import Writer
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.jobs.conftest import Still, Work
from tests.jobs.test_placed import INLINE, model, reinforce, rewards, weights
from tests.jobs.test_post_kills import Killed

__all__ = ["model"]  # a fixture


@pytest.mark.parametrize(
    ("bound", "policy"),
    [(1, {"kl": 0.02, "updates": 2}), (1, {}), pytest.param(2, {"algorithm": "ppo"}, marks=pytest.mark.long)],
)
def test_a_writer_behind_is_as_in_one_process(
    work: Work, model: Path, bound: int, policy: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"policy": policy, "staleness": bound}
    plain, _ = reinforce(work, model, "plain", None, how={"writer": "here"}, **more)
    placed, metrics = reinforce(work, model, "placed", INLINE, **more)
    assert rewards(placed) == rewards(plain)
    a, b = (load_model(folder).state_dict() for folder in (plain, placed))
    apart = max(float((a[name] - b[name]).abs().max()) for name in a)
    # By the early gradient's order of sums; steps divide by its size, however small.
    assert apart < (1e-5 if policy else 2e-4)
    rows = events.read_metrics(placed.parent / "log" / "events.jsonl")
    updates = policy.get("updates", 1)
    assert [row["rl/staleness"] for row in rows] == [min(step, bound) * updates for step in range(4)]
    assert 0 < metrics["largest_gap"] < 1e-4
    assert rows[-1]["rl/off_policy"] > metrics["largest_gap"]


def _same_bits_when_stopped(work: Work, model: Path, placement: dict[str, Any]) -> None:
    """Stopped after two steps and gone on with: as in one process at one go."""
    whole, _ = reinforce(work, model, "whole", INLINE, staleness=1)
    with pytest.raises(Stopped):
        reinforce(work, model, "cut", placement, staleness=1, control=Still(stop_after=2))
    out, _ = reinforce(work, model, "cut", placement, staleness=1)
    assert weights(out) == weights(whole)
    assert rewards(out) == rewards(whole)


def test_stopped_and_continued_it_is_the_same_bits(work: Work, model: Path) -> None:
    _same_bits_when_stopped(work, model, INLINE)


@pytest.mark.long
@pytest.mark.parametrize(
    "placement",
    [
        {"arrangement": "split", "processes": 3},
        {"pools": [{"roles": ["actor", "reference", "reward"]}, {"roles": ["writer"], "processes": 2}]},
    ],
    ids=["split", "pools"],
)
def test_on_processes_it_is_the_same_bits(work: Work, model: Path, placement: dict[str, Any]) -> None:
    _same_bits_when_stopped(work, model, placement)


def test_a_writer_with_older_weights_than_it_says_stops_the_run(
    work: Work, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(self: Writer, told: Any) -> None:
        self.version = int(told[0]["version"])

    named.protocol = "one_to_all"  # type: ignore[attr-defined]
    monkeypatch.setattr(Writer, "load", named)
    with pytest.raises(ShunterError, match="trainer and generator differ by"):
        reinforce(work, model, "old", INLINE, staleness=1)


@pytest.mark.parametrize("exact", [False, True])
def test_what_an_earlier_attempt_wrote_is_not_held_against_weights_unless_they_are_the_same(
    work: Work, model: Path, tmp_path: Path, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal of a killed attempt whose weights had the same numbers and other values."""
    more: dict[str, Any] = {"staleness": 1, "how": {"deterministic": exact}}
    hold = Actor._hold

    def cut(self: Actor, judged: Any, step: int) -> None:
        if step == 3:
            raise Killed
        hold(self, judged, step)

    with monkeypatch.context() as patch:
        patch.setattr(Actor, "_hold", cut)
        with pytest.raises(Killed):
            reinforce(work, model, "cut", INLINE, **more)
    found = list((tmp_path / "made" / "cut" / "private").glob("**/writer/step-00000003*.jsonl"))
    assert found
    for path in found:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        moved = [{**line, "logprobs": [each - 0.2 for each in line["logprobs"]]} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in moved))
    if exact:
        with pytest.raises(ShunterError, match="trainer and generator differ by"):
            reinforce(work, model, "cut", INLINE, **more)
        return
    out, metrics = reinforce(work, model, "cut", INLINE, **more)
    assert '"reused"' in (out.parent / "log" / "events.jsonl").read_text()
    assert metrics["largest_gap"] < 1e-4, "of what this attempt wrote"


@pytest.mark.parametrize("together", [(), ("reward",), ("reward", "reference")], ids=str)
def test_who_is_not_with_the_actor_is_asked_before_it_learns_from_the_step_before(
    together: tuple[str, ...],
) -> None:
    """Of grpo with a staleness of 1, by the order of calls. A pool carries them out in that order, so on the
    actor's own one nobody is asked before what it has to wait for is there."""
    calls: list[tuple[str, int]] = []
    roles = {
        name: Noted(name, "actor" if name in ("actor", "prompts", "judge", *together) else name, calls)
        for name in ("prompts", "actor", "judge", "reward", "reference", "writer")
    }
    ahead = Ahead(Cast(**roles), 1, 4)
    ahead.begin(0)
    for number in range(4):
        (step,) = grpo(ahead.cast, range(number, number + 1), rows=ahead.rows)
        assert step["written"].step == step["reward"].step == number
        ahead.after(number + 1)
    for name, call in (("reward", "grade"), ("reference", "logprobs")):
        asked = [calls.index((f"{name}.{call}", step)) for step in range(4)]
        assert asked == sorted(asked)
        for step in range(1, 4):
            learnt = calls.index(("actor.update", step - 1))
            assert (asked[step] < learnt) == (name not in together)
        assert len([each for each in calls if each[0] == f"{name}.{call}"]) == 4


class Noted:
    """A role that notes its calls, each of which answers with the step that it is of."""

    def __init__(self, name: str, pool: str, calls: list[tuple[str, int]]) -> None:
        self.name, self.pool, self.calls = name, pool, calls

    def __getattr__(self, call: str) -> Any:
        def called(*given: Any, step: int = -1, **named: Any) -> Any:
            step = given[-1].step if given and step < 0 else step
            self.calls.append((f"{self.name}.{call}", step))
            return SimpleNamespace(step=step, wait=lambda: None)

        return called


def test_the_bound_on_age_is_one_of_steps_where_some_made_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written two steps ago, one update ago: too old for a staleness of 1."""
    monkeypatch.setattr(actors, "told_by_all", lambda mine, *_: [mine])
    actor: Any = Actor.__new__(Actor)
    actor.station, actor.copies = SimpleNamespace(device=None, name="rl"), None
    actor.staleness, actor.begins, actor.tell = 1, deque(maxlen=2), lambda **told: None

    def stale(version: int, wrote: int) -> float:
        actor.version = version
        rows = Rows({"version": [np.array([wrote, version])]}, 1)
        return float(actor._stale(rows))

    assert [stale(0, 0), stale(1, 0), stale(1, 1)] == [0.0, 0.5, 0.0]  # the second step was idle
    with pytest.raises(ShunterError, match="1 updates old, and may be 0 at most"):
        stale(1, 0)
    assert stale(2, 1) == 0.5


def test_what_does_not_go_with_a_writer_is_refused(work: Work, model: Path) -> None:
    for placement, complaint in (
        ({"arrangement": "auto", "processes": 2}, "knows no writer"),
        ({"arrangement": "split", "processes": 3, "parts": 2}, "hand its weights on"),
        ({"pools": [{"roles": ["actor", "reference", "reward"]}]}, "no pool has the roles writer"),
    ):
        with pytest.raises(ShunterError, match=complaint):
            reinforce(work, model, "no", placement, staleness=1)
    pools = [{"roles": ["actor", "reference", "reward"]}, {"roles": ["writer"]}]
    with pytest.raises(ShunterError, match="no role 'writer'"):
        reinforce(work, model, "no", {"pools": pools})
