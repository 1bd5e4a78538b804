"""`shunter schedules` and `shunter simulate`: numbers, pictures, files, mistakes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import SCHEDULES
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import simulate


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


REPLICAS = """program,1
microbatches,2
placement,0,0,2
route,0,0@0,2@2
route,1,0@1,2@2
lane,0,compute,0F0,0B0
lane,1,compute,0F1,0B1
lane,2,compute,2F0,2F1,2B0,2B1
"""


def test_a_file_with_replicas_and_a_stage_that_nothing_uses(capsys: pytest.CaptureFixture[str]) -> None:
    """Stage 0 is half of rank 0, which holds stage 1 too, so it costs half on its replica as well; stage 2
    is all of rank 2."""
    Path("ways.csv").write_text(REPLICAS)
    told = json.loads(run(capsys, "simulate", "--program", "ways.csv", "--json"))
    assert told["elapsed"] == 0.5 + 1 + 1 + 2 + 2 + 1
    assert (told["ranks"], told["microbatches"]) == (3, 2)
    assert told["peak_activations"] == [0.5, 1.0, 2.0]
    costs = {"forward": [1, 9, 2], "input_grad": [1, 9, 2], "weight_grad": [0, 0, 0]}
    Path("costs.json").write_text(json.dumps(costs))
    told = json.loads(run(capsys, "simulate", "--program", "ways.csv", "--costs", "costs.json", "--json"))
    assert told["elapsed"] == 1 + 2 + 2 + 2 + 2 + 1


def test_links_differ_by_pair_and_messages_by_size(capsys: pytest.CaptureFixture[str]) -> None:
    Path("links.yaml").write_text("latency: 1\nbandwidth: 4\npairs:\n  0-1: {latency: 2}\n  1-0: {}\n")
    times = {"forward": 1, "input_grad": 1, "weight_grad": 0}
    Path("costs.json").write_text(json.dumps({**times, "bytes": {"activation": 8, "gradient": 2}}))
    args = ("simulate", "--schedule", "gpipe", "--ranks", "3", "--microbatches", "1", "--costs", "costs.json")
    told = json.loads(run(capsys, *args, "--links", "links.yaml", "--json"))
    # Six actions; up 2, then 1 + 8/4; down 1 + 2/4, then nothing.
    assert told["elapsed"] == 6 + 2 + 3 + 1.5
    Path("costs.json").write_text(json.dumps({**times, "bytes": 4}))
    told = json.loads(run(capsys, *args, "--links", "links.yaml", "--json"))
    assert told["elapsed"] == 6 + 2 + 2 + 2
    Path("costs.json").write_text(json.dumps(times))
    for text, says in [
        ("bandwidth: 4", "links have a bandwidth, and nothing says how many bytes"),
        ("pairs: {0-3: {}}", "'0-3' is no pair of 3 ranks"),
        ("pairs: {1-1: {}}", "'1-1' is no pair of 3 ranks"),
        ("latency: -1", "latency"),
        ("latency: .inf", "latency"),
        ("latncy: 1", "latency"),
    ]:
        Path("links.yaml").write_text(text)
        assert cli.main([*args, "--links", "links.yaml"]) == 2
        assert says in capsys.readouterr().err


def test_the_vocabulary_has_a_field_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "simulate", "--schedule", "zb1p", "--vocabulary", "2", "--json"))
    assert (told["schedule"], told["vocabulary"]) == ("zb1p", 2)
    assert json.loads(run(capsys, "simulate", "--schedule", "zb1p", "--json"))["vocabulary"] is None
    assert "zb1p, vocabulary on all ranks: 4" in run(
        capsys, "simulate", "--schedule", "zb1p", "--vocabulary", "1"
    )


def test_a_measured_timeline_is_drawn_below(capsys: pytest.CaptureFixture[str]) -> None:
    order = SCHEDULES["1f1b"].build(2, 4)
    found = simulate(assemble(order), Costs.even(order.placement, 1.5))
    found.timeline().save(Path("measured.json"))
    args = ("simulate", "--schedule", "1f1b", "--ranks", "2", "--microbatches", "4", "--measured")
    run(capsys, *args, "measured.json", "--html", "a.html")
    page = Path("a.html").read_text()
    assert re.findall(r'<text class="t"[^>]*>(\w+): ', page) == ["simulated", "measured"]
    assert page.count('<path class="k"') == 2
    Path("broken.json").write_text("[]")
    for name, says in (("none.json", "cannot be read"), ("broken.json", "no timeline")):
        assert cli.main([*args, name, "--html", "b.html"]) == 2
        assert says in capsys.readouterr().err
    assert cli.main([*args, "measured.json"]) == 2
    assert "--measured is for the picture" in capsys.readouterr().err


MISTAKES = [
    (["--schedule", "1fb1"], "no schedule is called '1fb1'. Did you mean 1f1b?"),
    ([], "give either --schedule or --program"),
    (["--schedule", "1f1b", "--chunks", "2"], "1f1b has 1 stage on each rank, not 2"),
    (["--schedule", "interleaved-1f1b", "--microbatches", "3"], "fewer than the 4 ranks"),
    (["--schedule", "gpipe", "--cap", "2"], "makes rank 0 hold 3 micro-batches"),
    (["--schedule", "1f1b", "--forward", "-1"], "--forward is -1.0"),
    (["--program", "no.csv"], "cannot be read"),
    (["--schedule", "1f1b", "--ranks", "100000"], "1f1b is built for at most 2,048 ranks, not 100,000"),
    (["--schedule", "v-half", "--ranks", "300"], "v-half is built for at most 128 ranks, not 300"),
    (["--schedule", "gpipe", "--microbatches", "9999999"], "make 39,999,996 forwards, more than 500,000"),
    (["--schedule", "1f1b", "--forward", "nan"], "--forward is nan"),
    (["--schedule", "1f1b", "--transfer", "inf"], "--transfer is inf"),
    (["--schedule", "1f1b", "--cap", "nan"], "--cap is nan"),
    (["--schedule", "1f1b", "--ranks", "0"], "ranks is 0"),
    (["--schedule", "1f1b", "--svg", "no/such/a.svg"], "cannot be written"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES)
def test_mistakes_are_one_sentence(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", *args]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
