"""A pipeline's simulated timeline above the measured one: numbers, drawing, damaged and large files."""

import json
import re

import pytest

from shunter.record.timeline import Timeline
from shunter.report import pipelines
from shunter.report.facts import JobFacts
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.simulate import simulate
from shunter.schedule.summary import figures
from tests.report.test_page import EVIL, Page, contrast, page_of


def slower(timeline, factor, name="measured"):
    """The same actions, everything later by this factor."""
    rows = ((s.rank, s.lane, s.name, s.begin * factor, s.end * factor, s.args) for s in timeline)
    made = Timeline(name=name)
    for rank, lane, text, begin, end, args in rows:
        made.add(rank, lane, text, begin, end, **args)
    return made


def zbv(microbatches=8, unit=0.01):
    order = schedule("zbv").build(2, microbatches)
    return simulate(assemble(order), Costs.even(order.placement, unit, unit, unit))


def keep(log, measured, simulated, step=7):
    measured.save(log / "timeline-measured.json")
    simulated.save(log / "timeline-simulated.json")
    with (log / "events.jsonl").open("a") as file:
        file.write(json.dumps({"t": 1, "event": "timeline", "attempt": 1, "step": step}) + "\n")


@pytest.fixture
def log(store):
    return store.artefacts["base"].path / "log"


def test_figures_of_a_timeline_are_the_simulation_s():
    found = zbv()
    told = figures(found.timeline())
    for name in ("elapsed", "ideal", "longest_span", "idle_over_ideal"):
        assert getattr(told, name) == pytest.approx(getattr(found, name)), name
    assert told.ranks == 2
    assert figures(Timeline()).idle_over_ideal == 0


def test_both_timelines_with_their_difference(store, log):
    simulated = zbv()
    keep(log, slower(simulated.timeline(), 1.25), simulated.timeline())
    html, facts = page_of(store)
    assert facts.problems == []
    page = Page(html)
    assert page.sections().index("pipelines") == page.sections().index("training") + 1
    rows = re.findall(r"<tr><th scope=\"row\">([^<]+)</th>(.*?)</tr>", html.split('id="pipelines"')[1])
    cells = {name: re.findall(r">([^<]+)</td>", row) for name, row in rows}
    took = 1e3 * simulated.elapsed
    assert cells["Step time, first action to last"] == [f"{took * 1.25:.4g} ms", f"{took:.4g} ms", "+25.0 %"]
    assert cells["Longest span of a rank"][2] == "+25.0 %"
    idle = f"{100 * simulated.idle_over_ideal:.1f} %"
    assert cells["Idle / ideal"] == [idle, idle, "+0.0 pp"]
    assert "Timeline of step 7" in html
    picture = re.search(r'<svg[^>]*class="timeline".*?</svg>', html, re.DOTALL)[0]
    assert "base: 2 ranks, simulated in" in picture
    assert "<style" not in picture, "its rules would be the page's too"
    heads = re.findall(r'<text class="t"[^>]*>(\w+): ', picture)
    assert heads == ["simulated", "measured"]
    assert picture.count('<path class="k"') == 2, "the memory curve, under each rank of the simulated one"
    assert "curve: activations held, at most 2" in picture
    # One scale: the same action is 1.25 times as wide where it took so much longer (and 0.6 is a gap).
    widths = [float(width) + 0.6 for width in re.findall(r'<rect [^>]*width="([\d.]+)" height="22"', picture)]
    half = len(widths) // 2
    assert half == len(simulated.timeline())
    assert sum(widths[half:]) / sum(widths[:half]) == pytest.approx(1.25, rel=0.01)


def test_colours_of_operations_carry_their_numbers_in_both_modes():
    from shunter.schedule.draw import COLOURS, OTHER

    for colour, meaning in (*COLOURS.values(), OTHER):
        assert contrast(colour, "#000000") >= 4.5, meaning


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"format": 9, "name": "x", "spans": []}',
        b'{"format": 1, "name": "x", "spans": []}',
        b'{"format": 1, "name": "x", "spans": [["0", "compute", "0F0", 0, 1, {}]]}',
        b'{"format": 1, "name": "x", "spans": [[0, "compute", "0F0", 0, 1, []]]}',
        b'{"format": 1, "name": "x", "spans": [[0, "compute", "0F0", 2, 1, {}]]}',
        b'{"format": 1, "name": "x", "spans": [7]}',
        b"[" * 5000,
    ],
)
def test_a_damaged_timeline_costs_its_column_only(store, log, content):
    made = zbv().timeline()
    keep(log, made, made)
    (log / "timeline-measured.json").write_bytes(content)
    html, facts = page_of(store)
    assert [problem for problem in facts.problems if "timeline-measured.json" in problem] == facts.problems
    assert len(facts.problems) == 1
    part = html.split('id="pipelines"')[1]
    assert "simulated: " in part
    assert "measured: " not in part


def test_text_of_a_timeline_stays_text(store, log):
    made = Timeline(name=EVIL)
    made.add(0, "compute", EVIL, 0, 1, op=EVIL, stage=EVIL, microbatch=EVIL)
    keep(log, made, made, step=EVIL)
    page = Page(page_of(store)[0])
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert [a for a in page.attributes if a[1].startswith("on")] == []


def test_a_large_timeline_is_drawn_small_or_told_by_its_numbers(store, log, monkeypatch):
    before = len(page_of(store)[0])
    made = zbv(200).timeline()
    assert pipelines.SEPARATE < len(made) <= pipelines.MOST
    keep(log, made, made)
    assert len(page_of(store)[0]) - before < 250_000
    monkeypatch.setattr(pipelines, "MOST", 100)
    html, _ = page_of(store)
    assert "actions are too many to draw here" in html
    assert 'class="timeline"' not in html
    assert "Longest span of a rank" in html


def test_many_variants_keep_the_page_small(tmp_path):
    jobs = []
    for number in range(pipelines.MAX_PICTURES + 2):
        log = tmp_path / str(number)
        log.mkdir()
        keep(log, zbv(2).timeline(), zbv(2).timeline())
        jobs.append(JobFacts(f"base[{number}]", log=log))
    found = pipelines.describe_pipelines([*jobs, JobFacts("waits")], problems := [])
    assert [pipeline.picture is None for pipeline in found] == [False] * pipelines.MAX_PICTURES + [True] * 2
    assert "Only the first 8" in found[-1].notes[0]
    assert problems == []
