"""A person's task learns the same on every layout, loses no example, and goes on where it was.

In float64: losses of every step, and what comes out, on tp, dp, fsdp and mixes of one process, whatever the
micro-batches, with dropout and the task's own random numbers. What this cannot show: dropout inside a fused
attention kernel, whose draws belong to a batch; other processes than gloo's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.parallel.mesh import Groups
from shunter.recipe.job import Stopped
from shunter.record.events import read
from shunter.train.task.draws import Draws, cut_dims
from shunter.train.task.face import Task, load
from tests.parallel import pool as pools
from tests.train.task.tasks import Net, collate, examples, loss, losses, metrics, refusal, small, started


def _on_rank(rank: int, groups: Groups, given: Any) -> dict[str, Any]:
    folder, grid, micro_batch, dropout, stop = given
    run = started(
        small(dropout),
        Path(folder),
        grid=grid,
        rank=rank,
        groups=pools.GROUPS,
        micro_batch=micro_batch,
        stop=stop,
    )
    try:
        metrics_ = run.run()
    except Stopped:
        return {"stopped": run.step}
    run.write(Path(folder) / "out")
    return {"metrics": metrics_, "outputs": run.predict(examples(7)), "computed": run.laid.computed}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, whole batches, with dropout."""
    folder = tmp_path_factory.mktemp("alone")
    run = started(small(0.25), folder, micro_batch=8)
    run.run()
    run.write(folder / "out")
    return folder


@pytest.mark.parametrize(
    ("grid", "micro_batch"),
    [(Grid(tp=2), 8), (Grid(fsdp=2), 3), (Grid(dp=2, tp=2), 2)],
    ids=["tp2", "fsdp2", "dp2tp2"],
)
def test_every_layout_learns_the_same(
    pool: Any, alone: Path, tmp_path: Path, grid: Grid, micro_batch: int
) -> None:
    given = str(tmp_path), grid, micro_batch, 0.25, 0
    told = pool.run(_on_rank, grid.size, given, grid)
    one = losses(alone)
    assert len(one) == 6  # 21 examples in batches of 8: the tail of each epoch is a step
    for rank in range(grid.size):
        assert losses(tmp_path, rank) == pytest.approx(one, rel=1e-9)
    assert all(each["outputs"] == told[0]["outputs"] for each in told)
    ours, theirs = (
        load_file(alone / "out" / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys() == Net().state_dict().keys()
    for name, tensor in ours.items():
        assert torch.allclose(theirs[name], tensor, rtol=1e-7, atol=1e-9), name
    if grid.tp > 1:
        assert told[0]["computed"]["blocks.0.fc1.weight"] == "in a pair"


def test_a_run_goes_on_under_another_layout(pool: Any, alone: Path, tmp_path: Path) -> None:
    grid = Grid(tp=2)
    stopped = pool.run(_on_rank, 2, (str(tmp_path), grid, 4, 0.25, 2), grid)
    assert stopped == [{"stopped": 2}] * 2
    run = started(small(0.25), tmp_path, micro_batch=8)
    run.run()
    told = read(tmp_path / "log-0" / "events.jsonl")
    assert [event["step"] for event in told if event["event"] == "resume"] == [2]
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-9)


def test_each_example_once_an_epoch(alone: Path) -> None:
    steps = [event for event in read(alone / "log-0" / "events.jsonl") if event["event"] == "step"]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(number for step in epoch for number in step["numbers"]) == list(range(21))
    assert steps[0]["numbers"] != steps[3]["numbers"]  # another order


@pytest.mark.parametrize("count", [1, 3, 4, 5, 21])
def test_predictions_are_as_many_as_examples_and_in_order(tmp_path: Path, count: int) -> None:
    def echo(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> list[int]:
        assert len(batch["ids"]) == 4  # batches are of one size
        return batch["ids"][:, 0].tolist()

    run = started(small(predict=echo), tmp_path)
    found = examples(count)
    assert run.predict(found) == [example[0] for example in found]
    assert run.predict([]) == []


def _echo(rank: int, groups: Groups, given: Any) -> list[list[int]]:
    folder, grid = given
    run = started(
        small(predict=lambda model, batch, draws: batch["ids"][:, 0]), Path(folder), grid=grid, rank=rank,
        groups=pools.GROUPS,
    )  # fmt: skip
    return [run.predict(examples(count)) for count in (1, 2, 5, 9)]


def test_predictions_of_several_processes_are_in_order(pool: Any, tmp_path: Path) -> None:
    wanted = [[example[0] for example in examples(count)] for count in (1, 2, 5, 9)]
    assert pool.run(_echo, 2, (str(tmp_path), Grid(dp=2)), Grid(dp=2)) == [wanted, wanted]


def _until_all_end(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> list[float]:
    """As generation does: as many passes as the longest row of this batch has words."""
    found = torch.zeros(len(batch["ids"]), dtype=torch.float64)
    for turn in range(int(batch["mask"].sum(1).max())):
        logits = model(batch["ids"][:, turn : turn + 1])[:, 0]
        found = found + logits.max(-1).values * batch["mask"][:, turn]
    return found.tolist()


def _generated(rank: int, groups: Groups, given: Any) -> list[float]:
    folder, grid = given
    run = started(
        small(predict=_until_all_end), Path(folder), grid=grid, rank=rank, groups=pools.GROUPS, micro_batch=2
    )
    return run.predict(examples(9))


def test_predict_may_take_another_time_on_each_rank(pool: Any, tmp_path: Path) -> None:
    grid = Grid(fsdp=2)
    wanted = started(small(predict=_until_all_end), tmp_path / "one", micro_batch=2).predict(examples(9))
    for told in pool.run(_generated, 2, (str(tmp_path), grid), grid):
        assert told == pytest.approx(wanted, rel=1e-12)


def test_the_best_state_is_kept(tmp_path: Path) -> None:
    """The rate is so high that the model gets worse again."""
    run = started(small(), tmp_path, epochs=6, lr=0.3, best={"metric": "accuracy", "mode": "max"})
    found = run.run()
    told = [e["values"] for e in read(tmp_path / "log-0" / "events.jsonl") if e["event"] == "metrics"]
    seen = [values["valid/accuracy"] for values in told if "valid/accuracy" in values]
    assert len(seen) == 6
    assert found["heldout_accuracy"] == max(seen)
    # What is written is that state.
    assert metrics(examples(7), run.predict(examples(7)))["accuracy"] == max(seen)


def test_a_scalar_loss_is_a_mean_over_examples(tmp_path: Path) -> None:
    def mean(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> Tensor:
        return model(batch["ids"][:, :2]).square().mean(dim=(1, 2)).mean()

    for micro_batch in (8, 3):
        started(small(loss=mean), tmp_path / str(micro_batch), micro_batch=micro_batch).run()
    assert losses(tmp_path / "8") == pytest.approx(losses(tmp_path / "3"), rel=1e-9)


def _mean_over_tokens(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> Tensor:
    total, count = loss(model, batch, draws)
    return total / count


def _no_mask(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
    return model(batch["ids"]).square().sum(), batch["mask"].sum()


class Batchy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": _mean_over_tokens}, "Return (sum, count)"),
        ({"loss": _no_mask}, "without what fills a batch up"),
        ({"model": lambda: Batchy().double()}, "normalises over a batch"),
        ({"loss": lambda model, batch, draws: model(batch["ids"])}, "tensor of shape"),
        ({"loss": lambda model, batch, draws: "low"}, "returns str"),
        ({"model": lambda: 3}, "not a torch module"),
        ({"predict": lambda model, batch, draws: [1]}, "returns 1 outputs for 4 examples"),
        ({"predict": lambda model, batch, draws: [object()] * 4}, "no number, text, list or mapping"),
        ({"metrics": lambda found, outputs: {}}, ""),
        ({"train": []}, "no examples"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    def work() -> None:
        run = started(small(**changes), tmp_path, grid=Grid())
        run.predict(run.task.heldout)
        run.run()

    assert told in refusal(work)


def test_evaluation_is_tried_before_training(tmp_path: Path) -> None:
    run = started(small(metrics=lambda found, outputs: {"score": found["no"]}), tmp_path)
    with pytest.raises(TypeError):
        run.run()
    assert run.step == 0
    assert "there is no metric 'f1'" in refusal(started(small(), tmp_path, best={"metric": "f1"}).run)


def test_random_numbers_belong_to_examples() -> None:
    device = torch.device("cpu")
    both = Draws(1, 5, [7, 9], device)
    one = Draws(1, 5, [9], device)
    assert torch.equal(both.normal(3)[1], one.normal(3)[0])
    assert torch.equal(both.uniform(2)[1], one.uniform(2)[0])
    assert torch.equal(both.integers(50, 4)[1], one.integers(50, 4)[0])
    assert not torch.equal(one.normal(3), Draws(1, 5, [9], device).normal(3))  # the fourth call, the first
    assert not torch.equal(Draws(1, 6, [9], device).normal(3), Draws(1, 5, [9], device).normal(3))


def test_the_cut_dim_of_a_dropped_tensor_is_found() -> None:
    whole, part = [(2, 4, 6, 6), (2, 6, 32), (2, 6, 16)], [(2, 2, 6, 6), (2, 6, 16), (2, 6, 16)]
    assert cut_dims(whole, part, 2) == [-3, -1, None]


def test_what_drops_is_found(tmp_path: Path) -> None:
    class Written(Net):
        def forward(self, ids: Tensor) -> Tensor:
            return F.dropout(super().forward(ids), 0.3, self.training)

    assert started(small(), tmp_path / "none").engine.dropouts is None
    assert started(small(0.1), tmp_path / "module").engine.dropouts == ()
    assert started(small(model=lambda: Written().double()), tmp_path / "code").engine.dropouts == ()


FILE = """
from tests.train.task.tasks import Net, collate, examples, loss
train = examples()
model = Net
"""


def test_a_file_defines_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    found = load(path)
    assert isinstance(found, Task)
    assert found.predict is None
    assert found.collate is not None
    path.write_text("def modle(): pass\ntrain = []\ncollate = list\n")
    assert "Is it 'modle'?" in refusal(lambda: load(path))
    path.write_text("def model(): pass\ntrain = []\ncollate = list\n")
    assert "needs a function `loss`" in refusal(lambda: load(path))
    assert "no such file" in refusal(lambda: load(tmp_path / "none.py"))
    text = tmp_path / "mine.txt"
    text.write_text(FILE)
    assert "no Python file" in refusal(lambda: load(text))
    assert collate(examples(2))["ids"].shape[0] == 2


def test_a_file_runs_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    for name in ("modle", "model"):  # as long, within the same second: Python's own cache takes them for one
        path.write_text(f"def {name}(): pass\ntrain = []\ncollate = list\n")
        os.utime(path, (1e9, 1e9))
        assert ("Is it" in refusal(lambda: load(path))) == (name == "modle")


def test_weights_may_come_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(9)
    stored = Net().double()
    save_file(dict(stored.state_dict()), tmp_path / "model.safetensors")
    run = started(small(weights=tmp_path), tmp_path / "run", epochs=1)
    for name, p in run.laid.parameters.items():
        assert torch.equal(p, stored.state_dict()[name]), name
    run.run()
    assert run.step == 3


def test_steps_that_are_not_finite_change_nothing_and_end(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        total, count = loss(model, batch, draws)
        return total * (float("nan") if draws.step >= 0 and model.training else 1.0), count

    run = started(small(loss=broken), tmp_path, epochs=9)
    before = {name: p.detach().clone() for name, p in run.laid.parameters.items()}
    assert "not finite in 11 steps" in refusal(run.run)
    assert all(torch.equal(before[name], p) for name, p in run.laid.parameters.items())


def test_examples_may_be_made_anew(tmp_path: Path) -> None:
    """As rollouts are: with the present model, an epoch each."""
    seen: list[int] = []

    def train(epoch: int, predict_: Any) -> list[list[int]]:
        found = examples(8)
        assert len(predict_(found)) == 8
        seen.append(epoch)
        return found

    run = started(small(train=train), tmp_path, epochs=3)
    run.run()
    assert (run.step, seen) == (3, [0, 1, 2])


class ByTime(Net):
    """[T, B, D], torch's own order, with dropout."""

    def forward(self, ids: Tensor) -> Tensor:
        x = nn.functional.dropout(self.embed(ids).transpose(0, 1), 0.4, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(x.transpose(0, 1))


def test_masks_belong_to_examples_along_any_dim(tmp_path: Path) -> None:
    for micro_batch in (8, 4, 1):
        run = started(
            small(model=lambda: ByTime(0.2).double()), tmp_path / str(micro_batch), micro_batch=micro_batch
        )
        run.run()
        assert not run.laid.notes
    for micro_batch in ("4", "1"):
        assert losses(tmp_path / micro_batch) == pytest.approx(losses(tmp_path / "8"), rel=1e-9)


class Alpha(Net):
    def forward(self, ids: Tensor) -> Tensor:
        found = super().forward(ids)
        return nn.functional.alpha_dropout(found, 0.1, self.training) + nn.functional.dropout(
            self.head.bias, 0.1, self.training
        )


def test_draws_of_a_batch_are_told(tmp_path: Path) -> None:
    run = started(small(model=lambda: Alpha().double()), tmp_path)
    assert "alpha_dropout: drawn for a batch" in run.laid.notes[0]
    assert "no dim is that of examples" in run.laid.notes[1]


def test_rollouts_draw_anew(tmp_path: Path) -> None:
    seen: list[float] = []

    def noise(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> Tensor:
        seen.append(float(draws.uniform(1)[0]))
        seen.append(float(torch.rand(())))
        return draws.uniform(1)[:, 0]

    def train(epoch: int, predict_: Any) -> list[list[int]]:
        predict_(examples(4))
        predict_(examples(4))
        return examples(8)

    started(small(train=train, predict=noise, metrics=None, heldout=()), tmp_path, epochs=2).run()
    assert len(seen) == len(set(seen)) == 8
    run = started(small(predict=noise), tmp_path / "other")
    assert run.predict(examples(4)) == run.predict(examples(4))  # evaluation stays as it is


def test_what_is_drawn_elsewhere_is_seeded(tmp_path: Path) -> None:
    def noise(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> list[float]:
        return [random.random() + float(np.random.rand())] * len(batch["ids"])

    run = started(small(predict=noise), tmp_path)
    assert run.predict(examples(4)) == run.predict(examples(4))


def test_checkpoints_of_drawn_epochs_are_not_longer_apart_than_told(tmp_path: Path) -> None:
    """Three steps an epoch, a checkpoint every two: at each epoch's end."""
    run = started(small(train=lambda e, p: examples(12)), tmp_path, epochs=3, batch=4, checkpoint_every=2)
    saved: list[int] = []
    save = run.checkpointer.save

    def noted(step: int, *given: Any) -> Path:
        saved.append(step)
        return save(step, *given)

    run.checkpointer.save = noted  # type: ignore[method-assign]
    run.run()
    assert saved == [3, 6, 9]


@pytest.mark.parametrize("again", [[0.4, 0.3], [0.7, 0.3], [0.4, 0.7]])
def test_a_best_state_that_no_checkpoint_names_does_not_replace_one(
    tmp_path: Path, again: list[float]
) -> None:
    """Step 1 is best, and step 2's checkpoint says so; step 3 is better, and the process dies."""
    settings_: dict[str, Any] = {
        "epochs": 4, "batch": 21, "checkpoint_every": 2, "evaluate_first": False,
        "best": {"metric": "accuracy", "mode": "max"},
    }  # fmt: skip

    def scored(values: list[float]) -> Task:
        found = iter(values)
        return small(metrics=lambda examples_, outputs: {"accuracy": next(found)})

    run = started(scored([0.5, 0.4, 0.6]), tmp_path, **settings_)
    step = run._step

    def dies(numbers: Any, steps: int) -> None:
        if run.step == 3:
            raise KeyboardInterrupt
        step(numbers, steps)

    run._step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    found = started(scored(again), tmp_path, **settings_).run()
    assert found["heldout_accuracy"] == max(0.5, *again)
    assert found["best_step"] == (1 if max(again) < 0.5 else 3 + again.index(max(again)))
    assert len(list((tmp_path / "best").glob("step-*"))) <= 2


def test_a_best_state_that_is_gone_does_not_end_a_run(tmp_path: Path) -> None:
    settings_: dict[str, Any] = {"epochs": 4, "batch": 21, "checkpoint_every": 2}
    with pytest.raises(Stopped):
        started(small(), tmp_path, stop=2, **settings_).run()
    for path in (tmp_path / "best").glob("step-*"):
        shutil.rmtree(path)
    assert started(small(), tmp_path, **settings_).run()["steps"] == 4


def test_a_changed_run_is_not_continued(tmp_path: Path) -> None:
    run = started(small(), tmp_path, epochs=1)
    run.run()
    with pytest.raises(ShunterError, match="another configuration"):
        started(small(), tmp_path, epochs=1, lr=0.5).run()
    with pytest.raises(ShunterError, match="began with 21 examples"):
        started(small(train=examples(20)), tmp_path, epochs=1).run()
    json.dumps(run.config.model_dump(mode="json"))
