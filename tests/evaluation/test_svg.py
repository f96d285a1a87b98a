"""Pictures: values stand where they should, and the markup is whole."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.evaluation.reports import svg

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def chart(*lines: svg.Line, x: svg.Axis, y: svg.Axis) -> ElementTree.Element:
    return ElementTree.fromstring(svg.line_chart(lines, x=x, y=y, title="a < b & c", description='"quoted"'))


def test_points_stand_at_their_values() -> None:
    line = svg.Line([1, 2, 4, 16], [0.0, 0.5, 1.0, 0.25], "pass", notes=["<one>", "two", "three", "four"])
    root = chart(line, x=svg.Axis(1, 16, log=True), y=svg.Axis(0, 1))
    at = [(float(p.attrib["cx"]), float(p.attrib["cy"])) for p in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = at
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)  # one decimal is written
    assert x3 - x2 == pytest.approx(2 * (x1 - x0), abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y3 == pytest.approx((y0 + y1) / 2, abs=0.11)
    assert y0 > y2  # upwards
    assert [t.text for t in root.iter("title")] == ["a < b & c", "<one>", "two", "three", "four"]


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=700))
@settings(max_examples=40, deadline=None)
def test_whatever_the_numbers_a_chart_is_whole_and_inside(points: list[tuple[float, float]]) -> None:
    points = sorted(points)
    x, y = [p[0] for p in points], [p[1] for p in points]
    beyond = max(y) - min(y) + 1  # bands that the axis does not hold
    line = svg.Line(x, y, "loss", low=[v - beyond for v in y], high=[v + beyond for v in y])
    root = chart(line, x=svg.Axis(x[0], x[-1]), y=svg.Axis(min(y), max(y)))
    paths = list(root.iter("path"))
    assert len(paths) == 2, "the band and the curve"
    for path in paths:
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", path.attrib["d"])]
        assert all(0 <= n <= svg.WIDTH for n in numbers[::2])
        assert all(0 <= n <= svg.HEIGHT for n in numbers[1::2])
        assert len(numbers) <= 4 * max(svg.POINTS, 1) + 4


def test_long_curves_are_bucket_means_without_what_is_not_finite() -> None:
    y = [math.nan if i % 1000 == 7 else 2.0 for i in range(30_000)]
    markup = svg.line_chart(
        [svg.Line(list(range(30_000)), y)], x=svg.Axis(0, 3e4), y=svg.Axis(0, 4), title="t", description="d"
    )
    assert len(markup) < 10_000
    heights = set(re.findall(r"[ML][\d.]+,([\d.]+)", markup))
    assert len(heights) == 1


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_are_few_even_and_inside(start: float, width: float) -> None:
    end = start + width
    if not end > start or width < 1e-6 * max(1.0, abs(start)):
        return
    ticks = svg.nice_ticks(start, end)
    assert 1 <= len(ticks) <= 6
    slack = 1e-6 * width + 1e-9 * abs(start)
    assert all(start - slack <= t <= end + slack for t in ticks)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_order(positions: list[float]) -> None:
    out = svg.spread(positions, 15, 0, 200)
    ordered = [b for _, b in sorted(zip(positions, out, strict=True))]
    assert all(b - a >= 15 - 1e-6 for a, b in zip(sorted(ordered), sorted(ordered)[1:], strict=False))
    assert max(out) <= 200 + 1e-9
    assert min(out) >= -1e-9


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(1, 9))
def test_smoothing_is_a_mean_and_does_not_lag(values: list[float], window: int) -> None:
    out = svg.smooth(values, window)
    assert out[0] == pytest.approx(values[0], abs=1e-9)
    for i in range(window, len(values)):
        part = values[i - window : i + window + 1]
        assert out[i] == pytest.approx(sum(part) / len(part), abs=1e-9)
