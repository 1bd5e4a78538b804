"""A run outlives its audience: output that cannot be written, a terminal that is closed."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shunter.recipe.control import RunControl
from shunter.recipe.graph import load_recipe
from shunter.recipe.progress import Progress, problems
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from tests.recipe.fakes import KINDS, write


class _Gone(io.StringIO):
    """A stream whose reader leaves after some lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") >= self.lines:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_run_goes_on_when_nobody_reads_its_output(
    lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, store = _Gone(lines), Store(tmp_path / "store")
    made = run_graph(load_recipe(write(tmp_path), [], KINDS), store, progress=Progress(stream=stream))
    assert set(made) == {"corpus", "base", "scores"}
    assert store.run("chain").state == "done"
    assert stream.getvalue().count("\n") == lines
    told = capsys.readouterr().err
    assert told.count("warning: the output cannot be written any more (Broken pipe)") == 1


def test_a_closed_terminal_saves_and_stops(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        control = RunControl(tmp_path)
        with control.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)  # the shell and the kernel may both send one
            assert control.stop_requested()
            assert control.code == 129
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        control = RunControl(tmp_path)
        with control.listening():  # nohup
            os.kill(os.getpid(), signal.SIGHUP)
            assert not control.stop_requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_could_not_be_read_is_told_with_its_first_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One warning, also when quiet; and the numbers of what was lost stand in the job's line."""
    source, work = type(KINDS["source"]), type(KINDS["source"]).run

    def troubled(self: object, context: Any) -> dict[str, Any]:
        work(self, context)
        context.events.write("problem", problem="half of it is lost")
        context.events.write("saved", step=7, why="stop")
        lines = [
            {"file": "a.txt", "line": line, "problem": "byte 0xdf is not utf-8", "action": "replaced"}
            for line in (7, 9)
        ]
        (context.out / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {"one": 1, "two": 2, "three": 3, "four": 4, "dropped": 6, "problems": 2, "not_graded": 3}

    monkeypatch.setattr(source, "run", troubled)
    store = Store(tmp_path / "store")
    made = run_graph(load_recipe(write(tmp_path), [], KINDS), store)
    told = capsys.readouterr()
    path = made["corpus"].path / "problems.jsonl"
    assert told.err.splitlines() == [
        "warning: corpus: 2 places could not be read as written, first a.txt:7 "
        f"(byte 0xdf is not utf-8: replaced). The list is {path}"
    ]
    assert "one 1, two 2, three 3, four 4, dropped 6, problems 2, not_graded 3\n" in told.out
    assert "  problem: half of it is lost\n" in told.out
    assert "  saved: step 7, why stop\n" in told.out
    run_graph(load_recipe(write(tmp_path), [], KINDS), store)
    assert capsys.readouterr().err == "", "told when it is made, not each time it is used"


def test_no_problems_no_warning(tmp_path: Path) -> None:
    made = run_graph(load_recipe(write(tmp_path), [], KINDS), Store(tmp_path / "store"), quiet=True)
    artefact = made["corpus"]
    assert problems(artefact) == ""
    (artefact.path / "problems.jsonl").write_text("")
    assert problems(artefact) == ""
