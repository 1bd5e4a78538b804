"""A resume on another world size: the same global batches, no row left out or taken twice.

Training is one process today; what a larger world will rest on is the loader's position, which counts
rows of all ranks, and a loss whose normaliser is counted over the whole batch. The first test gives the
position of a real checkpoint to groups of processes. The second adds the ranks' gradients up in one process:
it cannot show that a collective does so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.recipe.job import Stopped
from shunter.record import events
from shunter.train.loop import Training
from shunter.train.passes import OnePass
from shunter.train.session import Session
from shunter.train.step import train_step
from tests.jobs.conftest import Still
from tests.train import corpora

ROOT = Path(__file__).resolve().parents[2]
BATCH = 6
CONFIG = {"steps": 13, "batch_rows": BATCH, "lr": 1e-3}
# 25 rows an epoch: 13 steps are three epochs and a bit, and no step divides one.
WORLDS = ((2, 3), (3, 2), (1, 1), (4, 3))


def stopped(folder: Path) -> Training:
    """A training after four steps, with its checkpoint."""
    training = corpora.training(folder, CONFIG, control=Still(stop_after=4))
    with pytest.raises(Stopped):
        training.run()
    return training


def uninterrupted(folder: Path) -> tuple[Training, list[dict[str, Any]]]:
    training = corpora.training(folder, CONFIG)
    training.run()
    return training, [e for e in events.read(folder / "log" / "ledger.jsonl") if e["event"] == "step"]


def group(
    training: Training, state: dict[str, Any], world: int, steps: int, folder: Path
) -> tuple[dict[str, Any], list[list[list[int]]]]:
    """`world` processes take `steps` steps from a loader's state: the state after, each rank's ledger."""
    processes, ledgers = [], [folder / f"{world}-{rank}.jsonl" for rank in range(world)]
    for rank in range(world):
        request = {
            "rows": str(training.rows.folder),
            "state": state,
            "rank": rank,
            "world": world,
            "steps": steps,
            "batch_rows": BATCH,
            "ledger": str(ledgers[rank]),
        }
        command = [sys.executable, "-m", "tests.train.rank", json.dumps(request)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                text=True,
                stdout=subprocess.PIPE,
            )
        )
    states = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert all(each == states[0] for each in states), "ranks disagree on the position"
    return states[0], [[json.loads(line) for line in path.read_text().splitlines()] for path in ledgers]


def test_a_ledger_of_ids_shows_each_row_once_over_resizes(tmp_path: Path) -> None:
    """Two, three, one and four processes go on, one group after the other, from a training's checkpoint."""
    _, steps = uninterrupted(tmp_path / "whole")
    training = stopped(tmp_path / "cut")
    (manifest,) = (tmp_path / "cut" / "work" / "checkpoints").glob("step-00000004/manifest.json")
    state = json.loads(manifest.read_text())["extra"]["data"]
    order = training.rows.num_rows
    taken = [first_rows(training, 4 * BATCH)[i * BATCH : (i + 1) * BATCH].tolist() for i in range(4)]
    for world, count in WORLDS:
        state, parts = group(training, state, world, count, tmp_path)
        for step in range(count):
            mine = [part[step] for part in parts]
            assert sum(map(len, mine)) == BATCH
            # Interleaved, as they were dealt out, they are the global batch.
            taken.append([mine[at % world][at // world] for at in range(BATCH)])
    digests = [f"{zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes()):08x}" for ids in taken]
    assert digests == [step["rows"] for step in steps]
    ids = [row for batch in taken for row in batch]
    for epoch in range(len(ids) // order):
        assert sorted(ids[epoch * order : (epoch + 1) * order]) == list(range(order))


def first_rows(training: Training, count: int) -> np.ndarray:
    """The first rows of a training's order."""
    fresh = Session.fresh(corpora.decoder(), training.config, training.rows, training.seed)
    return fresh.loader.take(count)


def test_a_resize_learns_the_same(tmp_path: Path) -> None:
    """Each rank's gradient of its own rows, added up: the losses and weights are one process's, but for
    the rounding of fp32 sums in another order."""
    whole, steps = uninterrupted(tmp_path / "whole")
    training = stopped(tmp_path / "cut")
    checkpointer = training.checkpointer
    losses = [step["loss"] for step in steps[:4]]
    done = 4
    for world, count in WORLDS:
        # A new process: nothing is left of the world before but its checkpoint.
        model = corpora.decoder(seed=9)
        session = Session.fresh(model, training.config, training.rows, seed=9)
        session.load(checkpointer, done)
        training.session = session
        for _ in range(count):
            ids = session.loader.take(BATCH)
            result = train_step(
                OnePass(model, model, training.device, "fp32"),
                session.optimizers,
                training.objective,
                [training.rows.rows(ids[rank::world]) for rank in range(world)],
                step=session.step,
                rate=training._rate(),
                clip=training.config.clip,
            )
            session.step += 1
            losses.append(result.loss)
        done = session.step
        session.save(checkpointer)
    assert losses == pytest.approx([step["loss"] for step in steps], rel=1e-4)
    for (name, a), b in zip(model.named_parameters(), whole.decoder.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
