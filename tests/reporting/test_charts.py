"""Charts are well-formed markup, place values in proportion, and escape every text."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from taskedge.reporting.charts import MAX_MATRIX, MAX_POINTS, bar_chart, confusion_chart, line_chart, plan_chart

HOSTILE = "</svg><script>alert(1)</script>&\"'"
PART = {"device": HOSTILE, "blocks": [1], "down_seconds": 1.0, "compute_seconds": 2.0, "up_seconds": 1.0}
PLAN = {"parts": [PART], "latency_seconds": 4.0, "aggregation_seconds": 0.0, "lower_bound_seconds": 2.0}


def parsed(markup):
    assert "<script" not in markup
    return ET.fromstring(f"<div>{markup}</div>")


@pytest.mark.parametrize(
    "markup",
    [
        line_chart({HOSTILE: [(0, 1), (1, 2)]}, HOSTILE, HOSTILE, (1, HOSTILE)),
        bar_chart({HOSTILE: 3.0}, HOSTILE),
        confusion_chart([HOSTILE, "b"], [[1, 2], [3, 4]]),
        plan_chart(PLAN),
    ],
    ids=["lines", "bars", "matrix", "plan"],
)
def test_hostile_texts_stay_text(markup):
    assert "alert(1)" in "".join(parsed(markup).itertext())


def test_bars_are_in_proportion():
    widths = [float(bar.get("width")) for bar in parsed(bar_chart({"a": 4.0, "b": 1.0}, "t")).iter("rect")]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    phases = [float(bar.get("width")) for bar in parsed(plan_chart(PLAN)).iter("rect")]
    assert phases[1] == pytest.approx(2 * phases[0], rel=0.01)


def test_a_long_line_is_thinned_and_values_that_are_not_finite_are_left_out():
    points = [(float(x), float(x)) for x in range(5000)]
    line = next(parsed(line_chart({"a": [*points, (5000.0, math.nan)]}, "x", "y")).iter("polyline"))
    assert len(line.get("points").split()) == MAX_POINTS
    assert "no finite values" in line_chart({"a": [(0.0, math.inf)]}, "x", "y")


def test_one_point_and_equal_values_have_a_picture():
    for points in ([(3.0, 0.0)], [(1.0, 2.0), (2.0, 2.0)]):
        assert "polyline" in line_chart({"a": points}, "x", "y")


def test_many_classes_have_no_matrix():
    size = MAX_MATRIX + 1
    assert confusion_chart(["a"] * size, [[0] * size] * size) == ""
