"""Every bad input of docs/errors.md gives exit code 2 and exactly the lines that stand there."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter.cli import main as cli
from tests.cli.documents import ROOT, Block, blocks

PAGE = ROOT / "docs" / "errors.md"
BLOCKS = list(blocks(PAGE))


def cases() -> Iterator[tuple[str, str, list[str], str]]:
    """(place, command, expected lines, condition) of every `$ ` line of the console blocks."""
    for block in BLOCKS:
        if block.language != "console":
            continue
        command, expected = "", []
        for line in block.text.splitlines():
            if line.startswith("$ "):
                if command:
                    yield block.place, command, expected, block.info
                command, expected = line[2:], []
            else:
                expected.append(line)
        yield block.place, command, expected, block.info


CASES = list(cases())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the page shows."""
    for block in BLOCKS:
        if block.info and block.language != "console":
            target = tmp_path / block.info
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
    (tmp_path / "texts").mkdir(exist_ok=True)
    (tmp_path / "texts" / "one.txt").write_text("One sentence that is long enough to be kept. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "command", "expected", "condition"),
    CASES,
    ids=[f"{case[1]} {case[3]}".strip() for case in CASES],
)
def test_bad_input(
    place: str,
    command: str,
    expected: list[str],
    condition: str,
    files: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert condition in ("", "full-disk"), place
    if condition == "full-disk":
        monkeypatch.setattr("shunter.recipe.disk.free", lambda path: 10**6)
    program, *args = shlex.split(command)
    assert program == "shunter"
    if args[0] in cli.VERBS and not _landed(args[0]):
        pytest.skip(f"the verb {args[0]!r} is not there yet (test_main says so as a failure)")
    code = cli.main(args)
    out, err = capfd.readouterr()
    assert err.replace(str(files), "/home/ada/words").splitlines() == expected, place
    assert code == 2
    assert out == ""
    assert not (files / "shunter-store" / "artefacts").exists(), "work was done before the refusal"


def test_the_page_has_cases() -> None:
    assert len(CASES) >= 16
    shown: list[Block] = [block for block in BLOCKS if block.info and block.language != "console"]
    assert all(any(block.info in case[1] for case in CASES) for block in shown if "/" not in block.info)


def _landed(verb: str) -> bool:
    return importlib.util.find_spec(f"shunter.cli.{cli.VERBS[verb][0].split(':')[0]}") is not None
