"""Trainings of a sweep of which some are stopped by their beginnings, and go on later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.evaluate.early import Point, read, scores, stopped
from shunter.jobs import pretrain
from shunter.jobs.registry import KINDS
from shunter.recipe.graph import load_recipe
from shunter.recipe.job import Stopped
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from shunter.record import events
from shunter.train.config import TrainConfig
from shunter.train.schedule import rate
from tests.jobs.conftest import Still, Work
from tests.jobs.test_training_jobs import HOW, SHAPE, TRAIN, rows

__all__ = ["rows"]  # a fixture
RATES = (1e-4, 1e-3, 1e-1)


def test_a_run_that_a_verdict_stopped_goes_on_as_if_it_had_not(rows: Path, work: Work) -> None:
    """All are stopped at the same step; the verdict lets some go on, and the others are revived later."""

    def run(name: str, lr: float, looks: int | None) -> Path | None:
        config = {
            "tokens": "r", "model": SHAPE, "train": {**TRAIN, "lr": lr},
            "how": {**HOW, "log_every": 1, "checkpoint_every": 1},
        }  # fmt: skip
        try:
            out, _ = work(
                pretrain.JOB, config, inputs={"tokens": rows}, name=name, control=Still(stop_after=looks)
            )
        except Stopped:
            return None
        return out

    def log(name: str) -> list[Point]:
        return read(rows.parents[1] / name / "log" / "events.jsonl", TRAIN["batch_rows"])  # type: ignore[arg-type]

    names = {f"cut {lr}": lr for lr in RATES}
    assert [run(name, lr, 3) for name, lr in names.items()] == [None] * 3
    found = scores({name: log(name) for name in names}, 3 * 4)
    left = stopped(found, share=0.7)
    assert len(left) == 2
    for name in sorted(names, key=lambda name: name in left):  # those that go on first
        out, whole = run(name, names[name], None), run(f"whole {names[name]}", names[name], None)
        assert out is not None
        assert whole is not None
        assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert log(name) == log(f"whole {names[name]}"), "no step is missing, none is there twice"
    assert scores({name: log(name) for name in names}, 3 * 4) == found, "what came later changes no verdict"


def test_the_log_of_a_training_has_what_the_verdict_reads(rows: Path, work: Work) -> None:
    """Loss, rate, and the norm before clipping, of every step, by samples."""
    train = {**TRAIN, "clip": 1e-3, "schedule": "cosine", "warmup": 2}
    config = {"tokens": "r", "model": SHAPE, "train": train, "how": {**HOW, "log_every": 1}}
    out, _ = work(pretrain.JOB, config, inputs={"tokens": rows})
    log = out.parent / "log" / "events.jsonl"
    steps = [row for row in events.read_metrics(log) if "train/loss" in row]
    parsed = TrainConfig.model_validate(train)
    assert [row["step"] for row in steps] == list(range(1, parsed.steps + 1))
    assert [row["train/lr"] for row in steps] == pytest.approx([rate(parsed, n) for n in range(parsed.steps)])
    assert all(row["train/grad_norm"] > 10 * parsed.clip for row in steps)
    assert [point.samples for point in read(log, parsed.batch_rows)] == [
        parsed.batch_rows * row["step"] for row in steps
    ]


@pytest.mark.long
def test_a_sweep_of_trainings_goes_on_with_those_that_begin_well(tmp_path: Path) -> None:
    """The jobs and the verdict together, as a recipe has them."""
    text = "".join(json.dumps({"text": f"{n} and {n} are {2 * n}. " * 6}) + "\n" for n in range(120))
    (tmp_path / "texts.jsonl").write_text(text)
    recipe = tmp_path / "recipe.yaml"
    shape = "{dim: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 16, ffn_dim: 64, tied: true}"
    recipe.write_text(
        f"""\
version: 1
name: sweep
jobs:
  texts: {{kind: curate, sources: [{{path: texts.jsonl}}], heldout: 0.1}}
  words: {{kind: tokenizer, corpus: texts, vocab_size: 264}}
  rows: {{kind: tokens, corpus: texts, tokenizer: words, row_length: 32}}
  base:
    kind: pretrain
    tokens: rows
    model: {shape}
    train: {{steps: 40, batch_rows: 4}}
    how: {{threads: 1, log_every: 2, track: []}}
    matrix: {{train.lr: [1e-4, 1e-3, 1e-2, 1e-1]}}
    stop_early: {{after: 0.2}}
"""
    )
    graph = load_recipe(recipe, [], KINDS)
    store = Store(tmp_path / "store")
    made = run_graph(graph, store, quiet=True)
    record = store.run(recipe).data["early"][0]
    left = [name for name in graph.named("base") if name in made]
    assert sorted(record["stopped"] + left) == sorted(graph.named("base"))
    assert len(left) == 2
    logs = {name: made[name].path / "log" / "events.jsonl" for name in left}
    again = run_graph(load_recipe(recipe, ["jobs.base.stop_early=null"], KINDS), store, quiet=True)
    logs |= {name: again[name].path / "log" / "events.jsonl" for name in record["stopped"]}
    found = scores({name: read(log, 4) for name, log in logs.items()}, record["samples"])
    assert found == pytest.approx(record["scores"]), "the verdict was that of the beginnings alone"
    assert all(again[name].id == made[name].id for name in left)
