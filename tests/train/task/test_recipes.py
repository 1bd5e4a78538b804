"""The recipes' own tasks (tuning, privacy, learning to learn, reinforcement learning) learn, and are the same
on several ranks.

In float32, as they are, so layouts agree within its rounding. What this cannot show: that they are good at
what they do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.layout.grid import Grid
from shunter.parallel.mesh import Groups
from shunter.train.task.face import Task, load
from tests.parallel import pool as pools
from tests.train.task.tasks import losses, started

TASKS = Path(__file__).parents[3] / "recipes" / "tasks"
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"batch": 40, "lr": 0.004, "epochs": 1}, "dp_sgd": {"batch": 16, "weight_decay": 0.0, "epochs": 1},
    "maml": {"batch": 8, "epochs": 1}, "ppo": {"batch": 64, "epochs": 2},
}  # fmt: skip


def _task(name: str, few: int = 0) -> Task:
    task = load(TASKS / f"{name}.py")
    if few and not task.drawn_anew:
        return replace(task, train=task.train[:few], heldout=task.heldout[:8])  # type: ignore[index]
    return task


def _on_rank(rank: int, groups: Groups, given: Any) -> str:
    folder, name, grid = given
    torch.set_num_threads(1)
    run = started(
        _task(name, 80 if name == "sft" else 32), Path(folder), grid=grid, rank=rank, groups=pools.GROUPS,
        micro_batch=8, **SETTINGS[name],
    )  # fmt: skip
    run.run()
    return ", ".join(sorted(set(run.laid.computed.values())))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recipes_task_is_the_same_on_several_ranks(pool: Any, tmp_path: Path, name: str) -> None:
    alone = started(
        _task(name, 80 if name == "sft" else 32), tmp_path / "one", micro_batch=64, **SETTINGS[name]
    )
    alone.run()
    for number, grid in enumerate((Grid(tp=2), Grid(dp=2))):
        folder = tmp_path / str(number)
        computed = pool.run(_on_rank, 2, (str(folder), name, grid), grid)[0]
        assert losses(folder) == pytest.approx(losses(tmp_path / "one"), rel=2e-4), grid
        assert grid.tp == 1 or "in a pair" in computed or "in parts" in computed


def _reward(run: Any) -> float:
    task = run.task
    walks = task.train(99, run.predict)
    return sum(sum(walk["rewards"]) for walk in walks) / len(walks)


def test_they_learn(tmp_path: Path) -> None:
    run = started(_task("ppo"), tmp_path / "ppo", micro_batch=64, epochs=15, batch=64)
    before = _reward(run)
    run.run()
    assert _reward(run) > before + 1.0
    # Tasks that were not seen: after a step on ten points, a smaller error on ten others.
    run = started(_task("maml"), tmp_path / "maml", micro_batch=16, epochs=3, batch=16, lr=0.004)
    before = run.evaluate(run.task.heldout)["loss"]
    assert run.run()["heldout_loss"] < 0.8 * before
    run = started(_task("dp_sgd", 256), tmp_path / "dp", micro_batch=64, epochs=4, batch=64, weight_decay=0.0)
    assert run.run()["heldout_accuracy"] > 0.6


def test_noise_and_clipping_hide_an_example(tmp_path: Path) -> None:
    """The update of one step moves by at most 2 clip / n when one example is another."""
    from shunter.train.task.step import Step

    task = _task("dp_sgd", 32)
    found = []
    for changed in (False, True):
        examples = list(task.train[:16])  # type: ignore[index]
        if changed:
            examples[3] = ([100.0, -100.0], 2)
        given: dict[str, Any] = {}
        run = started(task, tmp_path / str(changed), micro_batch=16)
        step = Step(run.engine, examples, list(range(16)), 0, 0.1, lambda rate: None)
        step.update = given.update  # type: ignore[method-assign]
        assert task.step is not None
        task.step(step)
        found.append(given)
    moved = sum(float((found[0][name] - found[1][name]).square().sum()) for name in found[0]) ** 0.5
    assert 0 < moved <= 2 * 1.0 / 16 + 1e-6
