"""A search is a function of space, seed and what was found; failures are data; what matters is found to
matter.

What this cannot show: that a real machine's landscape is like the simulator's.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.papers.frontier import planned
from shunter.plan import frontier
from shunter.plan.importance import importance
from shunter.plan.trials import Failed, Point, Space, Trial, Trials, search

KNOBS = {"a": [1, 2, 4, 8, 16, 32], "b": [0, 1, 2, 3, 4, 5], "c": [False, True], "d": [1, 2, 3]}
SPACE = Space(KNOBS, lambda p: "a times b is too much" if int(p["a"]) * int(p["b"]) > 96 else "")


def run(point: Point) -> float:
    """Peaks at a=16, b=4; c matters little and d not at all; large a without c fails."""
    a, b = KNOBS["a"].index(int(point["a"])), int(point["b"])
    if a == 5 and not point["c"]:
        raise Failed("out of memory", 1.2)
    return 100 - 6 * abs(a - 4) - 5 * abs(b - 4) + 2 * bool(point["c"])


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    whole = search(SPACE, run, 16, seed=3, log=tmp_path / "whole.jsonl")
    log, count = tmp_path / "log.jsonl", 0

    def dying(point: Point) -> float:
        nonlocal count
        count += 1
        if count > 7:
            raise KeyboardInterrupt
        return run(point)

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, dying, 16, seed=3, log=log)
    log.write_text(log.read_text() + '{"number": 7, "poi')  # what a kill leaves
    ran: list[Point] = []
    again = search(SPACE, lambda point: (ran.append(point), run(point))[1], 16, seed=3, log=log)
    assert again.done == whole.done
    assert ran == [trial.point for trial in whole.done[7:]]
    assert log.read_text() == (tmp_path / "whole.jsonl").read_text()
    with pytest.raises(ShunterError, match="another search: other seed"):
        search(SPACE, run, 16, seed=4, log=log)


def test_a_log_is_of_one_search(tmp_path: Path) -> None:
    log, of = tmp_path / "log.jsonl", {"job": "base", "metric": "speed"}

    def go(**how: Any) -> Trials:
        how = {"of": of, "method": "random", "log": log, **how}
        return search(SPACE, run, 3, **how)

    first = go(code="abc")
    assert [trial.code for trial in go(code="def").done] == ["abc"] * 3  # from the log, which says by whom
    for other, said in (
        ({"of": {**of, "metric": "loss"}}, "other metric"),
        ({"of": {**of, "job": "chat", "metric": "loss"}}, "other job, metric"),
        ({"of": None}, "other job, metric"),
        ({"seed": 1}, "other seed"),
        ({"method": "bayes"}, "other method"),
    ):
        with pytest.raises(ShunterError, match=f"of another search: {said}"):
            go(**other)
    assert go().done == first.done
    # One that was begun before logs told what they are of.
    lines = log.read_text().split("\n")
    old = {key: value for key, value in json.loads(lines[0]).items() if key != "of"}
    log.write_text("\n".join([json.dumps({**old, "version": 1}), *lines[1:]]))
    assert go(of=None).done == first.done
    with pytest.raises(ShunterError, match="other job, metric"):
        go()
    for text in (
        "nothing\n",
        "[]\n",
        "{}\n",
        f"{lines[0]}\n{{}}\n",
        f"{lines[0]}\n3\n",
        lines[0][:-1] + "\n",
    ):
        log.write_text(text)
        with pytest.raises(ShunterError, match="no log of trials"):
            go()


def test_first_points_that_are_asked_for_once(tmp_path: Path) -> None:
    asked: list[int] = []
    point = {"a": 4, "b": 4, "c": True, "d": 1}

    def first() -> list[Point]:
        asked.append(1)
        return [{**point, "d": len(asked)}]

    found = [search(SPACE, run, n, method="random", log=tmp_path / "log", start=first) for n in (2, 4)]
    assert found[0].done == found[1].done[:2]
    assert found[1].done[0].point == point
    assert len(asked) == 1


def test_failures_are_trials_and_no_point_is_tried_twice_or_against_the_rules() -> None:
    found = search(SPACE, run, 10_000, method="random")
    assert len(found.done) == len(list(SPACE.points())) == len({json.dumps(t.point) for t in found.done})
    assert found.failures == sum(t.point["a"] == 32 and not t.point["c"] for t in found.done) > 0
    assert all(t.failed == "out of memory" and t.worth < 0 for t in found.done if t.value is None)
    assert found.best is not None
    assert found.best.value == 102
    first = {"a": 4, "b": 4, "c": True, "d": 1}
    assert search(SPACE, run, 2, method="random", start=[first]).done[0].point == first
    with pytest.raises(ShunterError, match="a times b is too much"):
        search(SPACE, run, 2, method="random", start=[{**first, "a": 32}])
    with pytest.raises(ShunterError, match="no combination"):
        search(Space(KNOBS, lambda point: "never"), run, 2, method="random")


def best_of(found: Trials) -> float:
    return (found.best.value or 0.0) if found.best else 0.0


def test_the_search_looks_where_it_was_good() -> None:
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    early, late = [], []
    for seed in range(2):
        values = [trial.value or 0.0 for trial in search(SPACE, run, 34, seed=seed).done]
        early += values[:10]
        late += values[-12:]
    assert mean(late) > mean(early) + 5


@pytest.mark.long
def test_bayesian_search_beats_chance_on_the_simulated_machine() -> None:
    """The card's figure, on fewer seeds than its experiment has: `shunter reproduce frontier`."""
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    machine = frontier.Machine(files.find("8xmi250x"))
    knobs = {**frontier.KNOBS, "rows": (1, 2, 3, 4, 6, 8)}
    space, points = frontier.study(frontier.GPT_175B, machine, knobs)
    known: dict[str, float | Failed] = {}

    def told(point: Point) -> float:
        key = json.dumps(point)
        if key not in known:
            try:
                known[key] = points(point)
            except Failed as failure:
                known[key] = failure
        found = known[key]
        if isinstance(found, Failed):
            raise found
        return found

    everything = search(space, told, 10_000, method="random")
    assert everything.failures > 20
    best = best_of(everything)
    first = planned(space)
    reached = {
        name: median(
            best_of(search(space, told, 30, seed=seed, method=method, start=start)) for seed in range(4)
        )
        for name, method, start in (
            ("planned", "bayes", [first]),
            ("bayes", "bayes", []),
            ("random", "random", []),
        )
    }
    assert reached["bayes"] >= reached["random"]
    assert reached["planned"] > reached["random"]
    assert reached["planned"] > 0.97 * best


def test_importance_knows_what_matters_and_how_surely() -> None:
    draw = random.Random(0)
    points = [p for p in SPACE.points() if not (p["a"] == 32 and not p["c"])]
    few, many = (
        [Trial(n, point, run(point)) for n, point in enumerate(draw.sample(points, count))]
        for count in (14, 110)
    )
    found = importance(SPACE, many, forests=6, trees=8)
    assert list(found)[:2] in (["a", "b"], ["b", "a"])
    assert found["d"].low <= 0.02
    assert found["a"].low > found["d"].high
    unsure = importance(SPACE, few, forests=6, trees=8)
    assert unsure["a"].high - unsure["a"].low > found["a"].high - found["a"].low
    assert importance(SPACE, few[:5]) == {}


def test_the_paper_s_observations_hold_on_the_simulator() -> None:
    """1: tensor parallelism across packages costs. 2: more micro-batches, more throughput. 3: more stages
    at the same batch, less. 4: batch and stages grown together hold it. And weak scaling."""
    machine = frontier.Machine(files.find("8xmi250x"))

    def at(**change: int) -> float:
        base = {"pp": 8, "tp": 4, "rows": 1, "accumulation": 16, "zero": 1, "devices": 128}
        return frontier.throughput(frontier.GPT_22B, machine, frontier.Setting(**{**base, **change}))

    assert [at(tp=t) for t in (1, 2, 4, 8)] == sorted((at(tp=t) for t in (1, 2, 4, 8)), reverse=True)
    assert [at(accumulation=m) for m in (4, 8, 16, 64)] == sorted(at(accumulation=m) for m in (4, 8, 16, 64))
    assert [at(pp=p) for p in (2, 4, 8, 16)] == sorted((at(pp=p) for p in (2, 4, 8, 16)), reverse=True)
    together = [at(pp=p, accumulation=8 * p, devices=32 * p) for p in (2, 4, 8)]
    assert max(together) / min(together) < 1.15
    assert at(devices=1024) / at(devices=128) >= 0.95
    with pytest.raises(Failed, match="out of memory"):
        at(pp=1, tp=1, zero=0)
    bytes_of = [
        frontier.stage_bytes(frontier.GPT_22B, frontier.Setting(8, 1, 1, 16, 1, 64), s) for s in range(1, 7)
    ]
    assert bytes_of == sorted(bytes_of, reverse=True)  # fewer micro-batches in flight, stage by stage
