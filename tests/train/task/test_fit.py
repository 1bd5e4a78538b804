"""A task from a script: the page's own, run as it stands there, on one process and two.

What this cannot show: torchrun over several machines.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.train.task.fit import fit
from tests.cli.documents import ROOT, blocks
from tests.train.task.tasks import examples, small

PAGE = {each.info: each.text for each in blocks(ROOT / "docs" / "any-model.md") if each.info}


def _run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_pages_script_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.py").write_text(PAGE["task.py"])
    (tmp_path / "script.py").write_text(PAGE["script.py"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    first = capsys.readouterr().out
    assert "heldout_accuracy" in first
    # A second start finds it finished, and predicts the same.
    runpy.run_path("script.py")
    again = capsys.readouterr().out
    assert "resume: step 30" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.long
def test_the_pages_script_runs_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(PAGE["task.py"])
    (tmp_path / "script.py").write_text(PAGE["script.py"])
    one = _run(tmp_path, "script.py").splitlines()[-1]
    two = PAGE["script.py"].replace('"run",', '"two", parallel={"tp": 2}, how={"device": "cpu"},')
    (tmp_path / "two.py").write_text(two)
    told = _run(tmp_path, "-m", "torch.distributed.run", "--nproc-per-node", "2", "two.py")
    assert one.rpartition("[")[2] in told
    metrics = [
        json.loads((tmp_path / name / "model" / "metrics.json").read_text()) for name in ("run", "two")
    ]
    assert metrics[0]["heldout_loss"] == pytest.approx(metrics[1]["heldout_loss"], rel=1e-3)


def test_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="epochs"):
        fit(small(), tmp_path, epocs=2)
    with pytest.raises(ShunterError, match="torchrun --nproc-per-node 2"):
        fit(small(), tmp_path, parallel={"tp": 2})
    with pytest.raises(ShunterError, match="needs a model whose layers declare"):
        fit(small(), tmp_path, parallel={"pp": 2})
    fitted = fit(small(), tmp_path, epochs=1, batch=8, how={"device": "cpu"})
    assert len(fitted.predict(examples(5))) == 5
    assert fitted.metrics["steps"] == 3
    assert fitted.whole().keys() == dict(fitted.model.named_parameters()).keys()
    assert fitted.model is fitted.run.laid.module
