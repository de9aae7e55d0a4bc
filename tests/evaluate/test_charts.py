"""Charts: every point where its axes say, whatever the numbers are."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluate.report.charts import HEIGHT, WIDTH, Line, line_chart, short_number, ticks

per_cent = st.floats(0, 100)
steps = st.floats(0, 1e9)


@given(st.lists(st.tuples(steps, per_cent), min_size=1, max_size=20))
def test_points_stay_in_the_drawing_and_keep_their_order(points):
    (line,) = line_chart("R@1", "steps", [Line("a", tuple(points))]).lines
    assert len(line.marks) == len(points)
    for mark, (x, y) in zip(line.marks, points, strict=True):
        assert 0 <= mark.x <= WIDTH
        assert 0 <= mark.y <= HEIGHT
        assert f"{y:.1f}%" in mark.note
        for other, (ox, oy) in zip(line.marks, points, strict=True):
            assert x < ox or mark.x >= other.x
            assert y < oy or mark.y <= other.y  # up is more


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_even_and_few(low, span):
    high = low + span
    if high - low < 1e-6 * max(1.0, abs(low)):
        return
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    gaps = [b - a for a, b in pairwise(found)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-3)
    assert low - 1e-6 * span <= found[0]
    assert found[-1] <= high + 1e-6 * span


def test_what_is_no_number_is_left_out():
    points = ((0.0, 50.0), (1.0, math.nan), (2.0, 60.0))
    (line,) = line_chart("R@1", "sentences", [Line("a", points)], ["1", "2", "all"]).lines
    assert len(line.marks) == 2
    assert "nan" not in line.path


def test_categories_are_labelled_in_their_order():
    chart = line_chart("R@1", "tokens", [Line("a", ((0.0, 1.0), (1.0, 2.0)))], ["1–9", "10–20"])
    assert [label for _, label in chart.x_ticks] == ["1–9", "10–20"]
    assert [x for x, _ in chart.x_ticks] == [mark.x for mark in chart.lines[0].marks]


def test_large_numbers_are_short():
    assert [short_number(n) for n in (0.5, 12, 12_500, 2e6, 3e9)] == [
        "0.5",
        "12",
        "12.5k",
        "2M",
        "3G",
    ]
