"""The job `report`: its page is its artefact, made of its inputs alone."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from shunter.jobs.report import JOB, ReportConfig
from shunter.recipe.artefact import Artefact, Manifest
from shunter.recipe.job import JobContext
from shunter.record.events import EventLog, read


def artefact(folder, name, type_):
    folder.mkdir(parents=True)
    return Artefact(
        folder,
        Manifest(
            format=1,
            name=name,
            kind=name,
            type=type_,
            version=1,
            id="f" * 64,
            content="e" * 64,
            what={},
            how={},
            inputs=[],
            metrics={},
            attempts=[],
            files=[],
            created="2026-02-03T14:05:00+00:00",
        ),
    )


def test_writes_a_page_and_logs_what_it_could_not_show(tmp_path):
    (tmp_path / "out").mkdir()
    config = ReportConfig(kind="report", title="My run", of=["base", "scores"])
    context = JobContext(
        name="report",
        config=config,
        out=tmp_path / "out",
        log=tmp_path / "log",
        work=tmp_path,
        base=tmp_path,
        inputs={
            "of": [artefact(tmp_path / "a", "base", "model"), artefact(tmp_path / "b", "scores", "scores")]
        },
        events=EventLog(tmp_path / "log" / "events.jsonl"),
        control=None,
    )
    assert JOB.check(config, tmp_path) == []
    metrics = JOB.run(context)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>My run</h1>" in html
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert metrics == {"bytes": len(html.encode()), "problems": 1}
    assert "scores.json cannot be read" in read(tmp_path / "log" / "events.jsonl")[0]["problem"]


def test_needs_something_to_show():
    with pytest.raises(ValidationError):
        ReportConfig(kind="report", of=[])


def test_imports_without_torch():
    code = "import sys, shunter.jobs.report; "
    code += "print([m for m in ('torch', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
