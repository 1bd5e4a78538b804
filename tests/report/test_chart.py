"""Chart and graph geometry, by properties."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.report import chart, lineage
from shunter.report.chart import Series, line_chart, smooth, thin, ticks

values = st.floats(-1e9, 1e9, allow_nan=False, width=32)
curves = st.lists(values, min_size=1, max_size=900).map(lambda ys: [(float(i), y) for i, y in enumerate(ys)])


@given(values, values)
def test_ticks_are_few_round_and_inside(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    margin = 1e-6 * max(abs(low), abs(high), 1e-12)
    assert all(low - margin <= tick <= high + margin for tick in found)
    assert len(found) <= 12
    assert found == sorted(found)


def test_ticks_of_known_ranges():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.0012, 0.0031, 4) == [0.0015, 0.002, 0.0025, 0.003]
    assert ticks(3, 3) == [3]


@given(curves)
def test_thinning_keeps_ends_order_and_extremes(points):
    kept = thin(points, 100)
    assert len(kept) <= 102 or len(points) <= 100
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert min(y for _, y in kept) == min(y for _, y in points)
    assert max(y for _, y in kept) == max(y for _, y in points)
    assert set(kept) <= set(points)


@given(curves)
def test_points_and_ticks_lie_where_the_frame_can_show_or_cut_them(points):
    drawn = line_chart("Loss", "nats", [Series("a", points), Series("b", points[:3], 1, faint=True)])
    left, top, right, bottom = drawn.frame
    for line in drawn.series:
        for pair in line.path[1:].split("L"):
            x, y = map(float, pair.split(","))
            assert left - 0.1 <= x <= right + 0.1
            assert abs(y) <= chart.FAR
    assert all(left <= x <= right for x, _ in drawn.x_ticks)
    assert all(top - 0.1 <= y <= bottom + 0.1 for y, _ in drawn.y_ticks)


@given(curves)
def test_smoothing_keeps_ends_and_straight_lines(points):
    straight = [(x, 3 - 2 * x) for x, _ in points]
    assert [y for _, y in smooth(straight, 5)] == pytest.approx([y for _, y in straight])
    smoothed = smooth(points, 7)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    scale = max(abs(y) for _, y in points) + 1e-30
    assert abs(smoothed[0][1] - points[0][1]) <= 1e-6 * scale
    assert abs(smoothed[-1][1] - points[-1][1]) <= 1e-6 * scale


def test_nothing_to_draw_is_no_chart():
    assert line_chart("Loss", "", []) is None
    assert line_chart("Loss", "", [Series("a", [])]) is None
    assert line_chart("Loss", "", [Series("a", [(1.0, 2.0)])]).series[0].dots


def test_what_leaves_the_frame_is_said():
    points = [(float(step), 1.0) for step in range(200)]
    points[1] = (1.0, 50.0)
    drawn = line_chart("Loss", "", [Series("raw", points, faint=True), Series("mean", points[5:])])
    assert drawn.note == "1 point lies outside the frame; the farthest is 50 at step 1."


def graphs(draw_names="abcdefgh"):
    return st.fixed_dictionaries(
        {
            name: st.lists(st.sampled_from(draw_names[:i] or "z"), max_size=3)
            for i, name in enumerate(draw_names)
        }
    )


def middles(path):
    """Points on the curves of a path, sampled."""
    numbers = [float(n) for n in re.findall(r"-?[0-9.]+", path)]
    start, rest = numbers[:2], numbers[2:]
    for at in range(0, len(rest), 6):
        controls = [start, rest[at : at + 2], rest[at + 2 : at + 4], rest[at + 4 : at + 6]]
        for t in (step / 16 for step in range(17)):
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            yield tuple(sum(w * c[axis] for w, c in zip(weights, controls, strict=True)) for axis in (0, 1))
        start = controls[-1]


@given(graphs())
def test_lineage_runs_left_to_right_without_overlapping_boxes(inputs):
    graph = lineage.lay_out(inputs)
    place = {box.name: box for box in graph.boxes}
    assert set(place) == set(inputs)
    for a, b, _ in graph.paths:
        assert place[a].x < place[b].x
    assert len({(box.x, box.y) for box in graph.boxes}) == len(graph.boxes)
    for box in graph.boxes:
        assert 0 <= box.x <= graph.width - lineage.BOX_WIDTH
        assert 0 <= box.y <= graph.height - lineage.BOX_HEIGHT
    for a, b, path in graph.paths:  # an edge goes round the boxes of the columns between
        for x, y in middles(path):
            for box in graph.boxes:
                inside = box.x < x < box.x + lineage.BOX_WIDTH and box.y < y < box.y + lineage.BOX_HEIGHT
                assert not inside or box.name in (a, b)
    columns = {}
    for box in graph.boxes:
        columns.setdefault(box.x, []).append(box.y)
    for rows in columns.values():
        rows.sort()
        assert all(b - a >= lineage.BOX_HEIGHT for a, b in itertools.pairwise(rows))


def test_a_damaged_record_with_a_cycle_still_lays_out():
    graph = lineage.lay_out({"a": ["b"], "b": ["a"], "c": ["c", "missing"]})
    assert {box.name for box in graph.boxes} == {"a", "b", "c"}
    assert lineage.lay_out({}).boxes == []
