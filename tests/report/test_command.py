"""`shunter report` on a store: finds the run, writes the file, prints scores, refuses with a sentence."""

import json

import pytest

from shunter.cli.main import main
from shunter.config.errors import ShunterError
from shunter.report.command import write_report


@pytest.fixture
def run(store):
    """A finished run's record in the store; returns its folder."""
    folder = store.path / "runs" / "20260203-140500-quickstart"
    folder.mkdir(parents=True)
    jobs = {name: {"artefact": made.path.name, "state": "done"} for name, made in store.artefacts.items()}
    jobs["tokenizer"]["state"] = "reused"
    (folder / "run.json").write_text(
        json.dumps(
            {
                "format": 1,
                "name": "quickstart",
                "recipe": "recipes/quickstart.yaml",
                "state": "done",
                "begin": 1770127500.0,
                "end": 1770127780.0,
                "jobs": jobs,
            }
        )
    )
    return folder


@pytest.mark.parametrize("ref", [None, "quickstart", "20260203-140500-quickstart", "recipes/quickstart.yaml"])
def test_the_page_lands_beside_the_run(store, run, ref):
    lines = write_report(store.path, ref, None)
    html = (run / "report.html").read_text()
    assert "4 min 40 s in all" in html
    assert "done, from an earlier run" in html
    assert lines[-1].startswith(str(run / "report.html"))
    assert any("xz -9: 2.310" in line for line in lines)
    assert any("the interval excludes zero" in line for line in lines)


def test_json_writes_no_page_unless_asked(store, run, tmp_path, capsys):
    assert main(["report", "quickstart", "--store", str(store.path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert not (run / "report.html").exists()
    assert {job["name"]: job["state"] for job in data["jobs"]}["tokenizer"] == "done"
    assert data["comparisons"][0]["excludes_zero"] is True
    assert data["scores"][0]["baselines"] == [{"name": "xz -9", "value": 2.31}]
    assert data["seconds"] == 280.0
    assert main(["report", "--store", str(store.path), "--json", "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_a_running_and_a_failed_run(store, run):
    record = json.loads((run / "run.json").read_text())
    identity = store.artefacts["tuned"].id
    record["state"] = "failed"
    record["jobs"]["tuned"] = {
        "artefact": None,
        "state": "failed",
        "kind": "sft",
        "id": identity,
        "error": "disk full",
    }
    record["jobs"]["scores"] = {"artefact": None, "state": "waiting"}
    (run / "run.json").write_text(json.dumps(record))
    work = store.path / "work" / f"tuned-{identity[:12]}"
    (work / "log").mkdir(parents=True)
    source = store.artefacts["tuned"].path / "log" / "events.jsonl"
    (work / "log" / "events.jsonl").write_bytes(source.read_bytes())
    (work / "attempts.jsonl").write_text('{"seconds": 33.0, "peak_bytes": 1000000, "outcome": "failed"}\n')
    write_report(store.path, None, None)
    html = (run / "report.html").read_text()
    assert "disk full" in html
    assert "33.0 s" in html
    assert html.count("<h3>tuned</h3>") == 1, (
        "the curve of the unfinished job is drawn from its working folder"
    )
    assert 'id="scores"' not in html


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"jobs": 3}', '{"jobs": {"a": 7, "b": {"artefact": "../../etc"}}}']
)
def test_a_damaged_record_gives_a_page(store, run, text):
    (run / "run.json").write_text(text)
    write_report(store.path, None, None)
    assert "<h2" in (run / "report.html").read_text()


def test_mistakes_are_refused_with_a_sentence(store, run, tmp_path, capsys):
    with pytest.raises(ShunterError, match=r"no run 'quickstrat'.*20260203-140500-quickstart"):
        write_report(store.path, "quickstrat", None)
    with pytest.raises(ShunterError, match=r"no run in the store.*--store"):
        write_report(tmp_path / "empty", None, None)
    assert main(["report", "--store", str(store.path), "--out", str(tmp_path / "no" / "r.html")]) == 2
    assert "cannot write the report" in capsys.readouterr().err
