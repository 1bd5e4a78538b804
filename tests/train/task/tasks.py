"""A small task: say of each number of a sequence what 3 x + 1 is, modulo 16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.parallel.mesh import ProcessGroups
from shunter.record.events import EventLog, read
from shunter.train.config import Parallel, TrainHow
from shunter.train.task.config import TaskConfig
from shunter.train.task.draws import Draws
from shunter.train.task.face import Task
from shunter.train.task.run import Place, TaskRun
from shunter.train.world import World

WORDS = 16


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(dropout)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.fc2(self.drop(F.gelu(self.fc1(self.norm(x))))))


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, WORDS)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def examples(count: int = 21) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 7, (count,), generator=draw).tolist()
    return [torch.randint(WORDS, (length,), generator=draw).tolist() for length in lengths]


def collate(found: Sequence[list[int]]) -> dict[str, Tensor]:
    ids = torch.zeros(len(found), max(map(len, found)), dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.float64)
    for row, example in enumerate(found):
        ids[row, : len(example)], mask[row, : len(example)] = torch.tensor(example), 1
    return {"ids": ids, "mask": mask}


def loss(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
    logits = model(batch["ids"])
    noisy = logits + 0.1 * draws.normal(1, WORDS).to(logits)
    each = F.cross_entropy(noisy.transpose(1, 2), (3 * batch["ids"] + 1) % WORDS, reduction="none")
    return (each * batch["mask"]).sum(), batch["mask"].sum()


def predict(model: nn.Module, batch: dict[str, Tensor], draws: Draws) -> Tensor:
    return model(batch["ids"]).argmax(-1)[:, 0]


def metrics(found: Sequence[list[int]], outputs: list[int]) -> dict[str, float]:
    right = sum(
        output == (3 * example[0] + 1) % WORDS for example, output in zip(found, outputs, strict=True)
    )
    return {"accuracy": right / len(found)}


def small(dropout: float = 0.0, **changes: Any) -> Task:
    task = Task(
        model=lambda: Net(dropout).double(), train=examples(), collate=collate, loss=loss, predict=predict,
        heldout=examples(7), metrics=metrics,
    )  # fmt: skip
    return replace(task, **changes)


class Asked:
    """Stops when it is asked for the n-th time; 0: never."""

    def __init__(self, after: int = 0) -> None:
        self.after, self.asked = after, 0

    def stop_requested(self) -> bool:
        self.asked += 1
        return self.asked == self.after

    def take_save_request(self) -> bool:
        return False


def started(
    task: Task,
    folder: Path,
    *,
    grid: Grid | None = None,
    rank: int = 0,
    groups: ProcessGroups | None = None,
    stop: int = 0,
    micro_batch: int = 4,
    checkpoint_every: int = 100,
    **train: Any,
) -> TaskRun:
    """A run whose records of this rank stand in `folder`."""
    grid = grid or Grid()
    world = World.create(grid, rank, torch.device("cpu"), groups or ProcessGroups())
    axes = {axis: grid.degree(axis) for axis in ("dp", "fsdp", "tp")}
    how = TrainHow(
        micro_batch=micro_batch, checkpoint_every=checkpoint_every, log_every=1, parallel=Parallel(**axes)
    )
    events = EventLog(folder / f"log-{rank}" / "events.jsonl")
    place = Place(folder, folder / f"log-{rank}", events, world.shared(Asked(stop)))
    settings: dict[str, Any] = {"epochs": 2, "batch": 8, "lr": 0.01, **train}
    return TaskRun(task, TaskConfig.model_validate(settings), how, place, world, seed=3)


def losses(folder: Path, rank: int = 0) -> list[float]:
    """Of each step, in order; repeated ones once."""
    told = read(folder / f"log-{rank}" / "events.jsonl")
    found = {event["step"]: float(event["loss"]) for event in told if event["event"] == "step"}
    return [found[step] for step in sorted(found)]


def refusal(work: Any) -> str:
    """What a ShunterError says; "" without one."""
    try:
        work()
    except ShunterError as error:
        return str(error)
    return ""
