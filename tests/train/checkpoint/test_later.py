"""Saves beside the training: the values of the moment, one at a time, and no failure that nobody hears of.

What this cannot show: pinned memory and a GPU's stream (tests/cuda, skipped without one), and how long a save
keeps the training: bench/checkpoint.py.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Groups
from shunter.record import events, points
from shunter.train.checkpoint import shared
from shunter.train.checkpoint.later import Staging
from shunter.train.checkpoint.lifecycle import Checkpointer, flatten
from shunter.train.loop import Training
from tests.parallel.pool import Pool
from tests.train import corpora
from tests.train.checkpoint import saving
from tests.train.checkpoint.saving import Held
from tests.train.layouts import Case

BESIDE = {"checkpoint_async": True}


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    points.install(None)


class Held_up:
    """A hook at which saves wait until they are let go."""

    def __init__(self, point: str = "checkpoint.manifest") -> None:
        self.point, self.reached, self.go = point, threading.Event(), threading.Event()

    def __call__(self, point: str, facts: dict[str, Any]) -> None:
        if point == self.point:
            self.reached.set()
            assert self.go.wait(20)


def test_what_is_saved_are_the_values_of_the_moment(tmp_path: Path) -> None:
    keeper, hook = Checkpointer(tmp_path), Held_up("checkpoint.reserve")
    points.install(hook)
    state, extra = {"a": torch.arange(5.0), "b": {"c": torch.ones(2, 3).T}}, {"skipped": [1]}
    keeper.save_later(1, state, extra)
    assert hook.reached.wait(20)
    state["a"].zero_()
    state["b"]["c"].zero_()
    extra["skipped"].append(2)
    assert keeper.steps() == []
    keeper.look()  # not landed: nothing to raise
    hook.go.set()
    keeper.wait()
    found = {"a": torch.empty(5), "b": {"c": torch.empty(3, 2)}}
    assert keeper.load(1, found) == {"skipped": [1]}
    assert torch.equal(found["a"], torch.arange(5.0))
    assert bool((found["b"]["c"] == 1).all())
    assert keeper.staging.bytes == 5 * 4 + 6 * 4


def test_one_is_on_its_way_at_most(tmp_path: Path) -> None:
    """The next waits: else it would copy over what is being written."""
    keeper, hook = Checkpointer(tmp_path), Held_up()
    points.install(hook)
    keeper.save_later(1, {"a": torch.ones(3)}, {})
    assert hook.reached.wait(20)
    second = threading.Thread(target=keeper.save_later, args=(2, {"a": torch.zeros(3)}, {}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert keeper.steps() == []
    hook.go.set()
    second.join(20)
    keeper.wait()
    assert keeper.steps() == [1, 2]
    for step, value in ((1, 1.0), (2, 0.0)):
        found = {"a": torch.full((3,), 7.0)}
        keeper.load(step, found)
        assert bool((found["a"] == value).all())


def test_the_copies_memory_is_used_again() -> None:
    staging, state = Staging(), {"a": torch.ones(4), "b": torch.ones(2)}
    parts = Checkpointer._parts(mock.Mock(), state)
    first = [tensor.data_ptr() for _, _, tensor in staging.copy(parts)]
    assert [tensor.data_ptr() for _, _, tensor in staging.copy(parts)] == first


def test_a_failure_is_told_once_at_the_next_look_or_save(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path)

    def full(point: str, facts: dict[str, Any]) -> None:
        if facts["step"] == 1:
            raise OSError(28, "No space left on device")

    points.install(full)
    for then in (lambda: (keeper._flight._thread.join(), keeper.look()), lambda: keeper.save(2, {}, {})):  # type: ignore[union-attr]
        keeper.save_later(1, {"a": torch.ones(3)}, {})
        with pytest.raises(OSError, match="No space"):
            then()
        keeper.wait()
    assert keeper.steps() == []
    with pytest.raises(ValueError, match="not JSON compliant"):  # before anything is begun
        keeper.save_later(3, {}, {"loss": float("nan")})


@pytest.mark.long
def test_the_interpreter_does_not_end_before_the_save(tmp_path: Path) -> None:
    program = f"""
import time, torch
from pathlib import Path
from shunter.record import points
from shunter.train.checkpoint.lifecycle import Checkpointer
points.install(lambda point, facts: time.sleep(0.3))
Checkpointer(Path({str(tmp_path)!r})).save_later(1, {{"a": torch.ones(9)}}, {{}})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert Checkpointer(tmp_path).latest() == 1


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


def state_of(training: Training) -> dict[str, torch.Tensor]:
    return flatten({**training.session.state(), "rng": {}})


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_saves_beside_its_steps_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    """Also after a kill: the equivalence by which the key stands under `how`."""
    whole = corpora.training(tmp_path / "now", {"optimizer": optimizer})
    whole.run()

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == 6:
            raise Killed

    points.install(kill)
    beside = corpora.training(tmp_path / "beside", {"optimizer": optimizer}, BESIDE)
    with pytest.raises(Killed):
        beside.run()
    points.install(None)
    assert beside.checkpointer.steps() == [4], "the end of a run waits for its save"
    folders = [tmp_path / name / "work" / "checkpoints" for name in ("now", "beside")]
    again = corpora.training(tmp_path / "beside", {"optimizer": optimizer}, BESIDE, model=corpora.decoder(5))
    again.run()
    assert all(torch.equal(a, state_of(again)[name]) for name, a in state_of(whole).items())
    assert [Checkpointer(folder).steps() for folder in folders] == [[8, 12], [8, 12]]
    one, two = (load_file(folder / "step-00000008" / "00000-00000.safetensors") for folder in folders)
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items() if name != "rng.torch")
    saves = [
        e for e in events.read(tmp_path / "beside" / "log" / "events.jsonl") if e["event"] == "checkpoint"
    ]
    assert all(each["staging_bytes"] > 0 for each in saves)


def test_steps_are_taken_while_a_save_is_on_its_way(tmp_path: Path) -> None:
    """The save of step 4 is not finished before step 7 begins; the one of step 8 waits for nothing."""
    begun, order = threading.Event(), list[str]()

    def hook(point: str, facts: dict[str, Any]) -> None:
        if point == "checkpoint.manifest" and facts["step"] == 4:
            assert begun.wait(20), "the training waited for its save"
            order.append("saved")
        elif point == "train.step":
            order.append(f"step {facts['step']}")
            if facts["step"] == 7:
                begun.set()

    points.install(hook)
    corpora.training(tmp_path, {}, BESIDE).run()
    assert order.index("saved") > order.index("step 7")


def test_a_run_ends_with_the_failure_of_its_save(tmp_path: Path) -> None:
    """Not with the next step's, and not in silence; the checkpoint before stays."""

    def full(point: str, facts: dict[str, Any]) -> None:
        if point == "checkpoint.shard" and facts["step"] == 8:
            raise OSError(28, "No space left on device")

    points.install(full)
    training = corpora.training(tmp_path, {}, BESIDE)
    with pytest.raises(OSError, match="No space"):
        training.run()
    assert 8 <= training.session.step <= 12
    assert sorted(path.name for path in training.checkpointer.folder.iterdir()) == ["latest", "step-00000004"]


def on_all_ranks(rank: int, groups: Groups, request: tuple[Case, Path, int, str]) -> tuple[Any, ...]:
    """Rank `fails` fails at `point` in the second of three saves, beside passes of the model's own groups."""
    case, folder, fails, point = request
    held = Held(rank, case, folder, beside=True)

    def fail(name: str, facts: dict[str, Any]) -> None:
        if rank == fails and name == point and facts["step"] == 2:
            raise OSError(28, "No space left on device")

    said, looks = "", 0
    held.checkpointer.save_later(1, held.state, {})
    points.install(fail)
    try:
        held.checkpointer.save_later(2, held.state, {})
        for tensor in flatten(held.state).values():
            tensor.zero_()
        while held.checkpointer._flight is not None:
            looks += 1  # the training's own messages go on meanwhile
            assert held.world.first(17) == 17
            held.checkpointer.look()
    except (OSError, ShunterError) as error:
        said = str(error)
    points.install(None)
    steps = held.checkpointer.steps()
    held.world.first(1)
    held.checkpointer.save(3, held.state, {})
    return said, looks, steps, sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("fails", "point"),
    [(2, "checkpoint.shard"), (0, "checkpoint.reserve"), (0, "checkpoint.manifest"), (-1, "")],
)
def test_the_failure_of_one_rank_reaches_all_at_one_step(
    pool: Pool, tmp_path: Path, fails: int, point: str
) -> None:
    case = saving.case("pp x tp")
    grid = case.layout.grid
    answers = pool.run(on_all_ranks, grid.size, (case, tmp_path, fails, point), grid)
    assert len({looks for _, looks, _, _ in answers}) == 1, "ranks went on for other numbers of steps"
    for rank, (said, _, steps, names) in enumerate(answers):
        if fails < 0:
            assert said == ""
            assert steps == [1, 2]
        else:
            assert ("No space" in said) if rank == fails else (f"rank {fails} could not" in said)
            assert steps == [1]
        assert "latest" in names
        assert not [name for name in names if name.startswith(".")]
    assert shared.Checkpointer(tmp_path).latest() == 3


def test_what_is_written_beside_a_layout_is_what_was_there(pool: Pool, tmp_path: Path) -> None:
    case = saving.case("cp x dp, ep x etp")
    grid = case.layout.grid
    pool.run(saving.save_beside, grid.size, (case, tmp_path), grid)
    assert saving.load_alone(saving.case("one"), tmp_path) == []
