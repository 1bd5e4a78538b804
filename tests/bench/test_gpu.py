"""The measurements for a GPU: their code runs on a CPU in small, and they refuse to pretend there.

What these tests cannot show: any number of a GPU, and that NCCL and CUDA's streams do what is expected.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import main

ROOT = Path(__file__).resolve().parents[2]


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_all_parts_run_in_small() -> None:
    done = gpu("--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    told = {
        name: json.loads(text)
        for name, text in (line.split(": ", 1) for line in done.stdout.strip().splitlines())
    }
    assert list(told) == ["gpipe", "megatron", "vocabulary", "grpo"]
    assert 0 < told["gpipe"]["kept"] < told["gpipe"]["recomputed"]
    assert told["megatron"]["best_rows"] in (1, 2, 4)
    assert set(told["megatron"]["days_at_that_rate"]) == {"175B", "1T"}
    # Eight ranks share a head that is far heavier than these layers.
    assert all(times > 1 for times in told["vocabulary"]["times_naive"].values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "this measures a GPU, and torch sees none here"),
        (["--device", "cpu"], "these sizes are for a GPU"),
        (["gpip"], "no such part: gpip"),
    ],
)
def test_what_it_refuses(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
