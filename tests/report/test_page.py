"""The page: complete, offline, escaped, and standing when parts are missing."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from shunter.record.events import EventLog
from shunter.report.curves import group_curves
from shunter.report.facts import Facts, JobFacts, from_artefacts
from shunter.report.page import render

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"`</pre></style>{{ 7*7 }}"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def sections(self):
        return [value for tag, name, value in self.attributes if tag == "section" and name == "id"]


def page_of(store, **changes):
    facts = from_artefacts("quickstart", store.artefacts.values())
    for name, value in changes.items():
        setattr(facts, name, value)
    return render(facts), facts


def test_a_finished_run_shows_every_part(store):
    html, facts = page_of(store, run="run-1", state="done", recipe="recipes/quickstart.yaml")
    assert facts.problems == []
    page = Page(html)
    assert page.sections() == [
        "scores",
        "training",
        "samples",
        "jobs",
        "data",
        "lineage",
        "configuration",
        "environment",
    ]
    text = " ".join(page.text)
    for expected in (
        "xz -9",
        "2.310",
        "1.702",
        "43.7 %",
        "+42.7 pp",
        "excluded",
        "inside the interval",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Held-out bits per byte",
        "Trained in 2 attempts",
        "What is 3 * 7?",
        "duplicate",
        "too short",
        "not UTF-8",
        "2 min 51 s",
        "1.37 GiB",
        "lr: 0.003",
        "3.11.9",
        "recipes/quickstart.yaml",
        store.artefacts["base"].id[:12],
    ):
        assert expected in text, expected
    assert len(html) < 300_000


def test_the_page_loads_nothing(store):
    html, _ = page_of(store)
    page = Page(html)
    outside = [
        (tag, name, value)
        for tag, name, value in page.attributes
        if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href")
        and not value.startswith("#")
    ]
    assert outside == []
    assert page.tags.count("script") == 1
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    style = html.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    policy = next(value for tag, name, value in page.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none';")
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy, "the browser would refuse our own script"


def test_text_from_models_and_files_stays_text(tmp_path, make_store):
    scores = {
        "models": {
            EVIL: {
                "tasks": {
                    EVIL: {
                        "metric": EVIL,
                        "value": 1.0,
                        "low": 0.9,
                        "high": 1.1,
                        "unit": EVIL,
                        "n": 3,
                        "baseline": {"name": EVIL, "value": 2.0},
                    }
                }
            }
        },
        "comparisons": [
            {
                "task": EVIL,
                "metric": EVIL,
                "a": EVIL,
                "b": EVIL,
                "difference": 1.0,
                "low": 0.5,
                "high": 1.5,
                "unit": EVIL,
                "n": 3,
            }
        ],
    }
    samples = [{"model": EVIL, "task": EVIL, "prompt": EVIL, "response": EVIL, "target": EVIL, "score": 1.0}]
    store = make_store(tmp_path / "store", samples=samples, scores=scores)
    html, facts = page_of(store, title=EVIL, run=EVIL, recipe=EVIL, state=EVIL, problems=[EVIL])
    clean, _ = page_of(make_store(tmp_path / "clean"))
    facts.jobs.append(
        JobFacts(
            EVIL,
            kind=EVIL,
            state=EVIL,
            id=EVIL,
            error=EVIL,
            inputs=["base"],
            what={EVIL: EVIL},
            how={"a": EVIL},
            metrics={EVIL: EVIL},
            attempts=[{"environment": {EVIL: EVIL}}],
        )
    )
    (store.artefacts["base"].path / "log" / "events.jsonl").open("a").write(
        json.dumps({"t": 1, "event": "metrics", "attempt": 3, "step": 500, "values": {f"train/{EVIL}": 1.0}})
        + "\n"
    )
    html = render(facts)
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert [a for a in page.attributes if a[1].startswith("on")] == []
    assert set(page.tags) <= set(Page(clean).tags) | {"div", "strong", "li"}
    assert "{{ 7*7 }}" in " ".join(page.text)
    assert html.count("&lt;script&gt;alert(1)") > 20


@pytest.mark.parametrize("state", ["running", "failed", "waiting"])
def test_an_unfinished_job_is_shown_as_far_as_it_came(state):
    job = JobFacts(
        "base",
        kind="pretrain",
        state=state,
        inputs=["corpus"],
        error="disk full" if state == "failed" else None,
    )
    page = Page(render(Facts("half", state=state, jobs=[JobFacts("corpus", "curate"), job])))
    assert page.sections() == ["jobs", "lineage", "configuration"]
    assert ("disk full" in " ".join(page.text)) == (state == "failed")


def test_an_empty_run_still_gives_a_page():
    assert Page(render(Facts("nothing"))).sections() == ["jobs", "configuration"]


@pytest.mark.parametrize(
    ("job", "file", "content"),
    [
        ("scores", "scores.json", b"{"),
        ("scores", "scores.json", b"[]"),
        ("scores", "scores.json", b'{"models": {"base": {"tasks": {"x": {"metric": 1, "value": "nan"}}}}}'),
        ("scores", "scores.json", b"[" * 5000),
        ("scores", "samples.jsonl", b"\xff\xfe{}\n[1]\n{\n"),
        ("corpus", "train/00000.parquet", b"PAR1 no"),
        ("corpus", "summary.json", b"7"),
        ("corpus", "dropped.jsonl", b"\n\n{"),
        (
            "base",
            "log/events.jsonl",
            b'{"event": "metrics", "step": 1, "attempt": 1, "values": {"train/loss": "nan"}}\n{',
        ),
    ],
)
def test_a_damaged_file_costs_its_part_only(store, job, file, content):
    (store.artefacts[job].path / file).write_bytes(content)
    html, _ = page_of(store)
    assert {"jobs", "lineage", "configuration", "environment"} <= set(Page(html).sections())


@pytest.mark.parametrize("job", ["corpus", "base", "scores", "questions"])
def test_missing_files_are_named_or_left_out(store, job):
    for path in sorted(store.artefacts[job].path.rglob("*")):
        if path.is_file():
            path.unlink()
    html, facts = page_of(store)
    assert "jobs" in Page(html).sections()
    assert bool(facts.problems) == (job == "scores")


def test_a_long_run_stays_small_and_keeps_its_spike(tmp_path, make_store, write_curves):
    store = make_store(tmp_path / "store")
    log = store.artefacts["base"].path / "log"
    (log / "events.jsonl").unlink()
    write_curves(log, steps=8000)
    lines = (log / "events.jsonl").read_text().splitlines()
    spike = json.loads(lines[5000])
    spike["values"]["train/loss"] = 77.125
    lines[5000] = json.dumps(spike)
    (log / "events.jsonl").write_text("\n".join(lines) + "\n")
    html, _ = page_of(store)
    assert len(html) < 500_000
    assert "77.125" in html, "a thinned curve must keep its highest point"
    assert "outside the frame; the farthest is 77.12" in html


def test_charts_have_words_for_those_who_do_not_see_them(store):
    html, _ = page_of(store)
    images = re.findall(r'role="img" aria-label="([^"]*)"', html)
    assert all(images)
    assert any(text.startswith("Loss in nats per token") and "lowest" in text for text in images)
    assert html.count('role="img"') == len(images)


def test_skipped_steps_and_broken_losses_are_said(store):
    log = store.artefacts["tuned"].path / "log" / "events.jsonl"
    with log.open("a") as file:
        file.write('{"t": 1, "event": "skip", "attempt": 1, "step": 12}\n')
        file.write(
            '{"t": 1, "event": "metrics", "attempt": 1, "step": 41, "values": {"train/loss": "nan"}}\n'
        )
    text = " ".join(Page(page_of(store)[0]).text)
    assert "1 step was skipped for a loss or gradient that is not finite (step 12)" in text
    assert "The loss is not finite at 1 logged step" in text


def test_a_metric_of_an_older_run_is_drawn_under_its_new_name(tmp_path):
    """Also where a run that goes on has both."""
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(1, 5):
        log.metrics(step, **{"rl/max_gap" if step < 3 else "rl/largest_gap": step / 8})
    log.close()
    (group,) = group_curves([JobFacts("tuned", log=tmp_path)])
    (chart,) = group.charts
    assert chart.title == "Largest gap of log-probabilities between trainer and generator"
    assert (json.loads(chart.hover)["x"], chart.unit) == ([1.0, 4.0], "nats")


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_in_light_and_dark(store):
    """WCAG 2.2 AA: 4.5 for text, 3 for lines of a chart."""
    style = page_of(store)[0].split("<style>")[1].split("</style>")[0]
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", part)) for part in style.split("@media", 2)[:2]
    )
    for theme in (light, dark):
        colors = {n: c if len(c) == 7 else "#" + "".join(x * 2 for x in c[1:]) for n, c in theme.items()}
        for text in ("ink", "dim", "accent", "bad", "good"):
            for ground in ("paper", "panel"):
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
        for line in (f"c{index}" for index in range(8)):
            assert contrast(colors[line], colors["paper"]) >= 3, line


def test_variants_of_a_sweep_share_their_charts(tmp_path, make_store, publish, write_curves):
    store = make_store(tmp_path / "store")
    for index in range(10):
        name = f"wide[train.lr={index}]"
        made = publish(store.path, name, "pretrain", "model", {}, inputs=["corpus"], made=store.artefacts)
        write_curves(made.path / "log", steps=60, end=3 + index / 10)
    html, _ = page_of(store)
    page = Page(html)
    assert html.count("<h3>wide</h3>") == 1
    text = " ".join(page.text)
    assert "Training loss, smoothed" in text
    assert "The charts show the first 8 variants; not drawn: wide[train.lr=8], wide[train.lr=9]." in text
    drawn = re.search(r'aria-label="(Training loss, smoothed[^"]*)"', html)[1]
    assert "train.lr=7:" in drawn
    assert "train.lr=8:" not in drawn


def test_many_training_jobs_stay_under_two_megabytes(tmp_path, make_store, publish, write_curves):
    store = make_store(tmp_path / "store", samples=[
        {"model": f"m{model}", "task": f"t{task}", "id": item, "prompt": "p" * 4000, "response": "r" * 4000}
        for model in range(4) for task in range(5) for item in range(8)
    ])  # fmt: skip
    first = publish(store.path, "more0", "pretrain", "model", {}, made=store.artefacts)
    write_curves(first.path / "log", steps=600)
    for index in range(1, 40):
        made = publish(store.path, f"more{index}", "pretrain", "model", {}, made=store.artefacts)
        (made.path / "log" / "events.jsonl").write_bytes((first.path / "log" / "events.jsonl").read_bytes())
    html, _ = page_of(store)
    assert "<h3>more39</h3>" in html
    assert len(html.encode()) < 2_000_000


def test_an_input_outside_the_report_is_drawn_by_name(store):
    facts = from_artefacts("part", [store.artefacts["tuned"], store.artefacts["scores"]])
    html = render(facts)
    assert html.count("not in this report") == 4  # corpus, questions, tokenizer, base
    assert "<title>base → tuned</title>" in html
