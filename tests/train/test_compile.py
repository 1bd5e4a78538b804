"""`how.compile` changes how a model is computed, not what is learnt.

It may stand in `how` only because of this. It shows one small model on a CPU, with documents of all lengths
in its rows; that a compiler is right on another device or shape it cannot show.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from shunter.record import events
from shunter.train.loop import Training
from tests.train import corpora

pytestmark = [
    pytest.mark.long,  # the compiler alone takes most of a minute
    pytest.mark.skipif(
        shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler"
    ),
]


def trained(folder: Path, precision: str, how: dict[str, Any]) -> Training:
    # AdamW: Muon makes its updates in bfloat16, which would hide a difference in fp32.
    config = {"steps": 8, "precision": precision, "optimizer": "adamw"}
    training = corpora.training(folder, config, {"checkpoint_every": 100, **how})
    training.run()
    return training


def steps(training: Training) -> list[dict[str, Any]]:
    return [e for e in events.read(training.place.log / "ledger.jsonl") if e["event"] == "step"]


@pytest.mark.parametrize(("precision", "tolerance", "apart"), [("fp32", 1e-5, 1e-2), ("bf16", 1e-2, 0.3)])
def test_compiled_it_learns_the_same(precision: str, tolerance: float, apart: float, tmp_path: Path) -> None:
    """The same rows, losses and gradient norms, and weights that moved the same way.

    tolerance: of losses, relative; bfloat16 has eight bits, and what the compiler fuses is rounded less
    often. apart: of weights, as a share of how far they moved (AdamW divides by a gradient that is nearly 0).
    """
    plain = trained(tmp_path / "plain", precision, {})
    torch.compiler.reset()
    counters.clear()
    compiled = trained(tmp_path / "compiled", precision, {"compile": True, "micro_batch": 4})
    assert counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    for a, b in zip(steps(plain), steps(compiled), strict=True):
        assert (a["rows"], a["position"], a["tokens"]) == (b["rows"], b["position"], b["tokens"])
        assert b["loss"] == pytest.approx(a["loss"], rel=tolerance)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=10 * tolerance)
    for (name, a), b, begin in zip(
        plain.decoder.named_parameters(),
        compiled.decoder.parameters(),
        corpora.decoder().parameters(),
        strict=True,
    ):
        moved = float((a - begin).detach().norm())
        assert float((a - b).detach().norm()) <= apart * moved, f"{name} moved {moved}"
