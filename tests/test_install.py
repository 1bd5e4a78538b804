"""scripts/install.py with stand-ins for pip and (but once) venv: what it decides, not what they do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "install.py"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real = subprocess.run
    module.calls = []  # type: ignore[attr-defined]
    module.real = False  # type: ignore[attr-defined]

    def run(command: list[str], **kwargs: Any) -> Any:
        if "pip" in command:
            module.calls.append(command)
            return subprocess.CompletedProcess(command, getattr(module, "code", 0))
        if "venv" in command and not module.real:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            (Path(command[-1]) / "pyvenv.cfg").touch()
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            python.chmod(0o755)
            return subprocess.CompletedProcess(command, 0, "", "")
        return real(command, **kwargs)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    # A space in the path, as in the folders of many people.
    return tmp_path / "my project" / ".venv"


def test_installs_once(install: Any, venv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install.real = True
    assert install.install(venv, "test") == 0
    (command,) = install.calls
    assert command[0] == str(venv / "bin" / "python")
    assert command[-1].endswith("[test]")
    assert "--constraint" in command
    assert "takes minutes" in capsys.readouterr().out
    assert install.install(venv, "test") == 0
    assert len(install.calls) == 1
    assert capsys.readouterr().out == ""


def test_installs_again_when_the_declaration_or_the_place_changes(
    install: Any, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install.install(venv, "test")
    assert install.install(venv, "test,dev") == 0
    assert len(install.calls) == 2
    stamp = venv / "shunter-install.json"
    for key in ("declared", "project", "venv"):
        stamp.write_text(json.dumps({**json.loads(stamp.read_text()), key: "other"}))
        count = len(install.calls)
        assert install.install(venv, "test,dev") == 0
        assert len(install.calls) == count + 1, key


def test_a_failed_or_broken_installation_is_not_taken_for_a_finished_one(
    install: Any, venv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install.code = 1
    assert install.install(venv, "test") == 2
    assert "pip could not install" in capsys.readouterr().err
    install.code = 0
    assert install.install(venv, "test") == 0
    (venv / "bin" / "python").unlink()
    assert install.install(venv, "test") == 0
    assert len(install.calls) == 3


def test_a_python_without_ensurepip_is_one_sentence(
    install: Any, venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    assert install.install(venv, "test") == 2
    err = capsys.readouterr().err
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert err.endswith(f"Install them: apt-get install {package}\n")
    assert err.count("\n") == 1


def test_an_old_python_is_one_sentence(
    install: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "MINIMUM", (9, 9))
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 2
    assert "shunter needs Python 9.9 or newer" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_left_alone(install: Any, venv: Path) -> None:
    venv.mkdir(parents=True)
    (venv / "letters.txt").write_text("dear")
    assert install.install(venv, "test") == 2
    assert (venv / "letters.txt").exists()
