"""Timelines: busy and idle add up, files round-trip, the trace is what Perfetto expects."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.record.timeline import Span, Timeline

times = st.floats(0, 1000, allow_nan=False)


@st.composite
def timelines(draw):
    timeline = Timeline(name="drawn")
    for _ in range(draw(st.integers(0, 20))):
        begin, length = draw(times), draw(times)
        timeline.add(
            draw(st.integers(0, 3)),
            draw(st.sampled_from(["compute", "copy", "comm"])),
            draw(st.sampled_from(["F", "B", "W", "größe"])),
            begin,
            begin + length,
            microbatch=draw(st.integers(0, 8)),
        )
    return timeline


@given(timelines())
def test_busy_and_idle_fill_the_elapsed_time(timeline):
    for lane, spans in timeline.lanes().items():
        busy = timeline.busy(lane)
        assert busy + timeline.idle(lane) == pytest.approx(timeline.elapsed)
        assert -1e-9 <= busy <= timeline.elapsed + 1e-9
        assert busy <= sum(span.seconds for span in spans) + 1e-9
    if not timeline.overlaps():
        for lane, spans in timeline.lanes().items():
            assert timeline.busy(lane) == pytest.approx(sum(span.seconds for span in spans))


@given(timelines())
def test_json_round_trip(timeline):
    again = Timeline.from_json(json.loads(json.dumps(timeline.to_json())))
    assert again.to_json() == timeline.to_json()
    assert list(again) == list(timeline)
    assert [span.args for span in again] == [span.args for span in timeline]


def test_known_numbers():
    timeline = Timeline()
    timeline.add(0, "compute", "F0", 1.0, 3.0)
    timeline.add(0, "compute", "F1", 3.0, 4.0)  # touching is not overlapping
    timeline.add(0, "copy", "save", 2.0, 2.5)
    timeline.add(1, "compute", "F0", 5.0, 11.0)
    assert timeline.elapsed == 10.0
    assert timeline.busy((0, "compute")) == 3.0
    assert timeline.idle((0, "compute")) == 7.0
    assert timeline.idle((1, "compute")) == 4.0
    assert timeline.busy((9, "compute")) == 0.0
    assert timeline.overlaps() == []


def test_overlap_is_found_also_behind_a_short_span_and_busy_counts_it_once():
    timeline = Timeline()
    long = timeline.add(0, "compute", "long", 0.0, 10.0)
    timeline.add(0, "compute", "short", 1.0, 2.0)
    late = timeline.add(0, "compute", "late", 5.0, 12.0)
    assert (long, late) in timeline.overlaps()
    assert len(timeline.overlaps()) == 2
    assert timeline.busy((0, "compute")) == 12.0


@pytest.mark.parametrize(
    ("rank", "begin", "end"), [(0, 2.0, 1.0), (0, float("nan"), 1.0), (0, 0.0, float("inf")), (-1, 0.0, 1.0)]
)
def test_impossible_spans_are_refused(rank, begin, end):
    with pytest.raises(ValueError, match="span"):
        Span(rank, "compute", "F", begin, end)


def test_empty_timeline_and_unknown_format():
    assert Timeline().elapsed == 0
    assert Timeline().to_trace()["traceEvents"] == []
    with pytest.raises(ValueError, match="format 99"):
        Timeline.from_json({"format": 99, "name": "x", "spans": []})


def test_trace_has_names_and_microseconds(tmp_path):
    timeline = Timeline(name="step 3")
    timeline.add(1, "comm", "all-reduce", 100.5, 101.0, bytes=64)
    timeline.add(0, "compute", "F0", 100.0, 100.25)
    timeline.save(tmp_path / "timeline.json")
    timeline.save_trace(tmp_path / "trace.json")
    assert Timeline.load(tmp_path / "timeline.json").to_json() == timeline.to_json()
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    work = {event["name"]: event for event in trace if event["ph"] == "X"}
    assert work["F0"]["ts"] == 0
    assert work["F0"]["dur"] == pytest.approx(250_000)
    assert work["all-reduce"]["ts"] == pytest.approx(500_000)
    assert work["all-reduce"]["args"] == {"bytes": 64}
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace if e["name"] == "thread_name"}
    assert named[1, work["all-reduce"]["tid"]] == "comm"
    assert {e["args"]["name"] for e in trace if e["name"] == "process_name"} == {"rank 0", "rank 1"}
