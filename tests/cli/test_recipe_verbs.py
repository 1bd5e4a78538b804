"""run, status, doctor, lineage, compare, gc and watch on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.jobs import registry
from tests.recipe.fakes import CHAIN, KINDS, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe of fake jobs, which `shunter` knows."""
    monkeypatch.setattr(registry, "KINDS", KINDS)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, CHAIN)
    return tmp_path


def shunter(*args: str, code: int = 0) -> None:
    assert cli.main(list(args)) == code


def test_run_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    shunter("run", "recipe.yaml", "--dry-run")
    assert "corpus  will run" in capsys.readouterr().out
    shunter("run", "recipe.yaml")
    out = capsys.readouterr().out
    assert "[3/3] scores  done in" in out
    assert out.splitlines()[-1].startswith("scores: ")
    shunter("run", "recipe.yaml", "jobs.base.steps=6", "--json")
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert [job["state"] for job in data["jobs"]] == ["reused", "done", "done"]
    assert "[2/3] base" in captured.err
    shunter("status")
    out = capsys.readouterr().out
    assert "recipe  state" in out
    assert "peak memory" in out
    shunter("status", "chain", "--json")
    data = json.loads(capsys.readouterr().out)
    assert data["run"]["state"] == "done"
    assert len(data["others"]) == 1


def test_from_to_and_redo(capsys: pytest.CaptureFixture[str]) -> None:
    shunter("run", "recipe.yaml", "--from", "base", code=2)
    assert "error: corpus is needed and not finished (never made)." in capsys.readouterr().err
    shunter("run", "recipe.yaml", "--to", "base")
    shunter("run", "recipe.yaml", "--from", "scores")
    shunter("run", "recipe.yaml", "--redo", "base", "--redo", "scores", "--json")
    out = capsys.readouterr().out
    data = json.loads(out[out.index("{") :])
    assert [job["state"] for job in data["jobs"]] == ["reused", "done", "done"]


def test_doctor(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    shunter("doctor", "recipe.yaml")
    out = capsys.readouterr().out
    for word in ("python", "torch", "cores", "memory", "disk", "devices", "store", "recipe", "jobs"):
        assert any(line.startswith(word) for line in out.splitlines()), word
    assert not (folder / "shunter-store").exists()
    shunter("run", "recipe.yaml")
    capsys.readouterr()
    shunter("doctor", "recipe.yaml", "--json", "--verify")
    rows = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in rows} <= {"ok", "warning"}
    (artefact,) = (folder / "shunter-store" / "artefacts").glob("corpus-*")
    (artefact / "part" / "text.txt").write_text("hellO")
    shunter("doctor", "--json", "--verify")
    rows = json.loads(capsys.readouterr().out)
    assert any("another content than was published" in row["text"] for row in rows)
    shunter("doctor", "recipe.yaml", "jobs.base.stepz=1", "--json", code=2)
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows if row["name"] == "recipe"] == ["refused"]


def test_lineage_compare_and_gc(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    shunter("run", "recipe.yaml")
    shunter("run", "recipe.yaml", "jobs.base.steps=6")
    capsys.readouterr()
    shunter("lineage", "scores")
    assert "`- models: base-" in capsys.readouterr().out
    shunter("lineage", "scores", "--json")
    assert len(json.loads(capsys.readouterr().out)["nodes"]) == 3
    shunter("gc", "--budget", "1kB")
    out = capsys.readouterr().out
    assert "not the newest scores" in out
    assert "--yes does it" in out
    shunter("gc", "--budget", "1kB", "--yes", "--json")
    assert json.loads(capsys.readouterr().out)["freed"] > 0
    assert len(list((folder / "shunter-store" / "artefacts").iterdir())) == 3
    shunter("gc")
    assert "nothing to remove" in capsys.readouterr().out
    shunter("gc", "--budget", "much", code=2)


def test_compare(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    shunter("run", "recipe.yaml")
    shunter("run", "recipe.yaml", "jobs.base.lr=0.2")
    runs = sorted(path.name for path in (folder / "shunter-store" / "runs").iterdir())
    capsys.readouterr()
    shunter("compare", *runs)
    out = capsys.readouterr().out
    assert "what: lr 0.1 -> 0.2" in out or "what: lr 0.2 -> 0.1" in out
    shunter("compare", *runs, "--json")
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 3


def test_watch_says_when_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shunter("watch", code=2)
    assert "error: nothing runs in the store" in capsys.readouterr().err
    shunter("run", "recipe.yaml")
    shunter("watch", "chain", code=2)
    assert "is done. Its report: shunter report" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "lineage x", "gc", "watch", "run recipe.yaml --dry-run"])
def test_a_folder_that_is_no_store_is_refused(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("")
    shunter(*verb.split(), "--store", "thesis", code=2)
    assert "this folder is no store (it holds 'chapter.tex')" in capsys.readouterr().err
    assert [path.name for path in (folder / "thesis").iterdir()] == ["chapter.tex"]


def test_verbs_do_not_load_torch_and_a_dry_run_is_fast(folder: Path) -> None:
    code = (
        "import sys\n"
        "from shunter.jobs import registry\n"
        "from tests.recipe.fakes import KINDS\n"
        "registry.KINDS = KINDS\n"
        "from shunter.cli.main import main\n"
        "for verb in (['run', 'recipe.yaml', '--dry-run'], ['run', 'recipe.yaml'], ['status'], ['doctor'],\n"
        "             ['lineage', 'scores'], ['gc']):\n"
        "    assert main(verb) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    dry = (
        "import sys\n"
        + "\n".join(code.splitlines()[1:5])
        + "\nsys.exit(main(['run', 'recipe.yaml', '--dry-run']))"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", dry],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=True,
        )
        times.append(time.perf_counter() - begin)
    # The bound is 0.5 s on a quiet machine; tests share theirs.
    assert min(times) < 1.5
