"""Faults strike where they were asked to, once, and what cannot be meant is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.launch import inject
from shunter.record import points
from tests.recipe.fakes import write

ROOT = Path(__file__).resolve().parents[2]

# The fake jobs of the recipe's tests behind the real injector: no torch, a tenth of a second.
SCRIPT = """
import sys
from shunter.launch.inject import install_from_environment
from tests.recipe import fakes
install_from_environment()
sys.exit(fakes.main())
"""


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    points.install(None)


def injector(*faults: dict[str, Any], seed: int = 0) -> inject.Injector:
    return inject.Injector(inject.read(json.dumps({"seed": seed, "faults": list(faults)})))


def struck(hook: inject.Injector, passages: list[tuple[str, dict[str, Any]]]) -> list[int]:
    """Indices of the passages at which an exception came."""
    found = []
    for number, (point, facts) in enumerate(passages):
        try:
            hook(point, facts)
        except inject.Injected:
            found.append(number)
    return found


STEPS = [("train.step", {"step": step}) for step in range(6)]
TWO_JOBS = [("job.begin", {"job": "base"}), *STEPS, ("job.begin", {"job": "chat"}), *STEPS]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({}, [1]),
        ({"hit": 3}, [3]),
        ({"step": 4}, [5]),
        ({"step": 4, "hit": 2}, [12]),
        ({"job": "chat"}, [8]),
        ({"job": "chat", "step": 5}, [13]),
        ({"hit": 13}, []),
    ],
)
def test_where_it_strikes(fault: dict[str, Any], expected: list[int]) -> None:
    hook = injector({"kind": "exception", "point": "train.step", **fault})
    assert struck(hook, TWO_JOBS) == expected


def test_an_action_of_a_pipeline_may_be_named() -> None:
    passages = [("pipeline.action", {"rank": 1, "action": f"1{op}{m}"}) for m in range(3) for op in "FB"]
    fault = {"kind": "exception", "point": "pipeline.action", "action": "1B1"}
    assert struck(injector(fault), passages) == [3]
    assert struck(injector({**fault, "hit": 2}), passages * 2) == [9]


def test_a_point_may_name_its_job_itself() -> None:
    hook = injector({"kind": "exception", "point": "publish.rename", "job": "chat"})
    assert struck(hook, [("publish.rename", {"job": job}) for job in ("base", "chat")]) == [1]


def test_chance_is_decided_by_the_seed() -> None:
    fault = {"kind": "exception", "point": "train.step", "probability": 0.3}
    many = [("train.step", {"step": step}) for step in range(400)]
    draws = {seed: struck(injector(fault, seed=seed), many) for seed in (0, 0, 1)}
    assert struck(injector(fault, seed=0), many) == draws[0]
    assert draws[0] != draws[1]
    assert 90 < len(draws[0]) < 150, "400 passages at 0.3"


def test_two_faults_count_apart_and_directives_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    hook = injector(
        {"kind": "nan", "point": "train.step", "step": 2},
        {"kind": "truncate", "point": "checkpoint.shard", "hit": 2},
    )
    assert [hook(*each) for each in STEPS] == [None, None, "nan", None, None, None]
    assert [hook("checkpoint.shard", {"step": step}) for step in (3, 6, 9)] == [None, "truncate", None]
    assert capfd.readouterr().err.splitlines() == [
        "injected nan at train.step (step 2)",
        "injected truncate at checkpoint.shard (step 6)",
    ]


def test_a_full_disk_is_one_to_every_handler() -> None:
    from shunter.recipe import disk

    with pytest.raises(OSError) as found:
        injector({"kind": "full-disk", "point": "job.done"})("job.done", {"job": "base"})
    assert disk.is_full(found.value)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("{", r"SHUNTER_INJECT"),
        ("[]", r"SHUNTER_INJECT"),
        ('{"faults": []}', r"faults"),
        ('{"faults": [{"kind": "kill"}]}', r"faults.*point"),
        ('{"faults": [{"kind": "kil", "point": "train.step"}]}', r"did you mean kill\?|kill"),
        ('{"faults": [{"kind": "kill", "point": "train.stp"}]}', r"did you mean 'train.step'\?"),
        (
            '{"faults": [{"kind": "nan", "point": "job.done"}]}',
            r"nan works at train.step only, not at job.done",
        ),
        ('{"faults": [{"kind": "truncate", "point": "train.step"}]}', r"checkpoint.shard only"),
        (
            '{"faults": [{"kind": "kill", "point": "train.step", "action": "1B2"}]}',
            r"action is of the point pipeline.action, not of train.step",
        ),
        ('{"faults": [{"kind": "kill", "point": "train.step", "stp": 3}]}', r"stp"),
        ('{"faults": [{"kind": "kill", "point": "train.step", "step": -1}]}', r"step"),
        ('{"faults": [{"kind": "kill", "point": "train.step", "probability": 0}]}', r"probability"),
    ],
)
def test_what_cannot_be_meant_is_refused(plan: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inject.VARIABLE, plan)
    with pytest.raises(ShunterError, match=sentence):
        inject.install_from_environment()
    assert points.reach("train.step", step=0) is None, "nothing is armed"


def test_without_the_variable_nothing_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    inject.install_from_environment()
    monkeypatch.setenv(inject.VARIABLE, "")
    inject.install_from_environment()
    assert points._hook is None


def test_armed_faults_are_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(inject.VARIABLE, '{"faults": [{"kind": "exception", "point": "job.begin"}]}')
    inject.install_from_environment()
    assert capsys.readouterr().err == "warning: 1 injected fault armed by SHUNTER_INJECT\n"
    with pytest.raises(inject.Injected, match=r"injected at job\.begin"):
        points.reach("job.begin", job="base")


def test_a_series_is_decided_by_its_seed() -> None:
    series = [inject.random_fault(3, number, 20) for number in range(200)]
    assert series == [inject.random_fault(3, number, 20) for number in range(200)]
    assert series != [inject.random_fault(4, number, 20) for number in range(200)]
    assert {fault.point for fault in series} == set(points.POINTS) - {"pipeline.action"}
    assert max(fault.hit for fault in series if fault.point == "train.step") > 10


@pytest.mark.parametrize(
    ("kind", "code", "state", "last"),
    [
        ("kill", -signal.SIGKILL, "killed", "killed"),
        ("stop", 143, "stopped", "stopped"),
        ("exception", 1, "failed", "failed"),
        ("full-disk", 2, "failed", "failed"),
    ],
)
def test_each_kind_in_a_process(kind: str, code: int, state: str, last: str, tmp_path: Path) -> None:
    from shunter.recipe.attempt import read_attempts
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store
    from tests.recipe.fakes import KINDS

    recipe, store = write(tmp_path), Store(tmp_path / "store")
    plan = {"faults": [{"kind": kind, "point": "train.step", "job": "base", "step": 2}]}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(recipe), str(store.path)],
        cwd=ROOT,
        env={**os.environ, inject.VARIABLE: json.dumps(plan)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert f"injected {kind} at train.step (job base, step 2)" in done.stderr
    assert store.run("chain").state == state
    made = run_graph(load_recipe(recipe, [], KINDS), store, quiet=True)
    assert made["base"].manifest.attempts[0]["outcome"] == last
    assert made["base"].manifest.metrics == {"steps": 5, "first": 2}, "work is kept"
    assert read_attempts(store.work_folder("base", made["base"].id)) == []


def test_slowness_strikes_again_and_again_and_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    fault = {"kind": "slow", "point": "train.step", "hit": 2, "seconds": 0.05}
    hook = injector(fault)
    begin = time.perf_counter()
    hook("train.step", {"step": 0})
    assert time.perf_counter() - begin < 0.05
    for step in (1, 2, 3):
        hook("train.step", {"step": step})
    assert time.perf_counter() - begin > 3 * 0.05
    assert capfd.readouterr().err.count("injected slow") == 1
    for wrong in ({"seconds": 0}, {"kind": "kill"}):
        with pytest.raises(ShunterError, match="belong to the kind slow"):
            inject.read(json.dumps({"faults": [{**fault, **wrong}]}))
