"""A recipe's job over other axes than stages: killed, resumed under another layout, the model of one process.

What this cannot show: NCCL, and faults that need more ranks than four.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.jobs import pretrain
from shunter.launch.inject import VARIABLE
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_training_jobs import rows

__all__ = ["rows"]  # a fixture

MODEL = {
    "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 48, "tied": True,
}  # fmt: skip
MIXTURE = {
    **MODEL, "tied": False,
    "experts": {"num_experts": 4, "per_token": 2, "ffn_dim": 16, "balance_loss": 0.01},
}  # fmt: skip
TRAIN = {"steps": 8, "batch_rows": 4, "precision": "fp32", "validate_every": 8, "optimizer": "adamw"}


def train(work: Work, rows: Path, model: Any, parallel: dict[str, Any] | None, name: str) -> Any:
    how = {"threads": 1, "log_every": 2, "checkpoint_every": 3, "micro_batch": 2, "parallel": parallel}
    config = {"tokens": "r", "model": model, "train": TRAIN, "how": how}
    return work(pretrain.JOB, config, inputs={"tokens": rows}, name=name)


def goes_on(
    rows: Path,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    first: dict[str, Any],
    second: dict[str, Any],
) -> None:
    """Killed in step 5 of `first`, ended under `second`: rows and weights as of one process."""
    alone, expected = train(work, rows, model, None, "alone")
    fault = {"kind": "kill", "point": "train.update", "step": 5, "rank": 1}
    monkeypatch.setenv(VARIABLE, json.dumps({"faults": [fault]}))
    with pytest.raises(ShunterError, match="rank 1 was ended by SIGKILL"):
        train(work, rows, model, first, "laid")
    monkeypatch.delenv(VARIABLE)
    laid, metrics = train(work, rows, model, second, "laid")
    for name in ("loss", "heldout_loss", "tokens"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, laid))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    told = events.read(laid.parent / "log" / "events.jsonl")
    assert next(event["step"] for event in told if event["event"] == "resume") == 3
    ledgers = [events.read(folder.parent / "log" / "ledger.jsonl") for folder in (alone, laid)]
    taken = [{event["step"]: event["rows"] for event in each} for each in ledgers]
    assert taken[0] == taken[1]


def test_tensor_and_sharded_ranks_die_and_data_ranks_go_on(
    rows: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on(rows, work, monkeypatch, MODEL, {"tp": 2, "fsdp": 2}, {"dp": 2})


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"dp": 2, "ep": 2}, {"fsdp": 2, "tp": 2, "etp": 2}),
        ({"cp": 2, "tp": 2, "ep": 2, "etp": 2}, {"dp": 2, "ep": 2}),
    ],
)
def test_experts_die_on_two_ranks_and_go_on_elsewhere(
    rows: Path, work: Work, monkeypatch: pytest.MonkeyPatch, first: dict[str, Any], second: dict[str, Any]
) -> None:
    goes_on(rows, work, monkeypatch, MIXTURE, first, second)


def test_stages_cut_by_measured_times(rows: Path, work: Work) -> None:
    alone, _ = train(work, rows, MODEL, None, "alone")
    piped, _ = train(work, rows, MODEL, {"pp": 2, "cut": "measured", "microbatches": 2}, "piped")
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, piped))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
