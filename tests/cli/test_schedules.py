"""`shunter schedules` and `shunter simulate`: numbers, pictures, files, mistakes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.schedule.catalogue import SCHEDULES


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(list(args)) == 0
    return capsys.readouterr().out


def test_every_schedule_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "schedules", "--ranks", "4", "--microbatches", "6")
    assert all(name in text for name in SCHEDULES)
    assert "not here: 6 micro-batches are fewer than the 8 stages" in text  # dualpipev
    rows = {row["schedule"]: row for row in json.loads(run(capsys, "schedules", "--json"))["schedules"]}
    assert rows["1f1b"]["elapsed"] == 33
    assert rows["1f1b"]["idle_over_ideal"] == pytest.approx(3 / 8)
    assert rows["zbv"]["longest_span"] == 24
    assert rows["v-min"]["peak_activations"] < rows["1f1b"]["peak_activations"]


def test_the_fields_of_a_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(
        run(capsys, "simulate", "--schedule", "1f1b", "--ranks", "4", "--microbatches", "8", "--json")
    )
    names = ("schedule", "ranks", "microbatches", "elapsed", "ideal", "idle_over_ideal", "longest_span")
    assert [told[name] for name in names] == ["1f1b", 4, 8, 33.0, 24.0, 0.375, 33.0]
    assert told["peak_activations"] == [4.0, 3.0, 2.0, 1.0]
    assert told["critical_path"][0] == "rank 0 0F0"
    assert told["seconds"] < 5
    assert told["helps"][0]["saves"] > 0
    # A slow stage is found.
    costs = json.dumps({"forward": [1, 1, 3, 1], "input_grad": [1, 1, 3, 1], "weight_grad": 1})
    Path("costs.json").write_text(costs)
    slow = json.loads(run(capsys, "simulate", "--schedule", "1f1b", "--costs", "costs.json", "--json"))
    assert "stage 2" in slow["helps"][0]["what"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_pictures_traces_and_programs_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(
        capsys, "simulate", "--schedule", "zbv", "--html", "a.html", "--svg", "a.svg", "--trace", "a.json",
        "--csv", "a.csv",
    )  # fmt: skip
    assert "idle/ideal" in text
    assert "rank 0" in text
    root = ET.fromstring(Path("a.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text or "" for title in root.iter(f"{space}title")]
    assert len(titles) == 8 * 8 * 3  # stages, micro-batches, operations
    assert titles[0].startswith("0F0, 0 to 0.5")
    page = Path("a.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert json.loads(Path("a.json").read_text())["traceEvents"]
    again = json.loads(run(capsys, "simulate", "--program", "a.csv", "--json"))
    first = json.loads(run(capsys, "simulate", "--schedule", "zbv", "--json"))
    for name in ("elapsed", "idle_over_ideal", "peak_activations", "microbatches"):
        assert again[name] == first[name], name


def test_large_programs_are_drawn_with_few_elements(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "simulate", "--schedule", "1f1b", "--ranks", "16", "--microbatches", "200", "--svg", "a.svg")
    text = Path("a.svg").read_text()
    assert text.count("<path") + text.count("<rect") < 200


MISTAKES = [
    (["--schedule", "1fb1"], "no schedule is called '1fb1'. Did you mean 1f1b?"),
    ([], "give either --schedule or --program"),
    (["--schedule", "1f1b", "--chunks", "2"], "1f1b has 1 stage on each rank, not 2"),
    (["--schedule", "interleaved-1f1b", "--microbatches", "3"], "fewer than the 4 ranks"),
    (["--schedule", "gpipe", "--cap", "2"], "makes rank 0 hold 3 micro-batches"),
    (["--schedule", "1f1b", "--forward", "-1"], "--forward -1.0 is negative"),
    (["--program", "no.csv"], "cannot be read"),
    (["--schedule", "1f1b", "--ranks", "0"], "ranks is 0"),
    (["--schedule", "1f1b", "--svg", "no/such/a.svg"], "cannot be written"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES)
def test_mistakes_are_one_sentence(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", *args]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
