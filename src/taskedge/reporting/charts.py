"""Charts as inline SVG for a page: lines, bars, a matrix of counts, and the bars of a plan. No script, no network.

Colors are variables of the page (``--c1`` to ``--c6``), so that one picture serves light and dark. All texts are
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Points = Sequence[tuple[float, float]]

MAX_POINTS = 400
"""Points of a line; a longer one shows evenly spaced points of it, the last included."""
MAX_MATRIX = 30
"""Classes of a matrix; more have no picture."""
_COLORS = 6
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 260, 64, 40, 12


def line_chart(series: Mapping[str, Points], x_name: str, y_name: str, mark: tuple[float, str] | None = None) -> str:
    """Return lines over a common axis, with a legend; points that are not finite are left out.

    Args:
        series: points (x, y) in the order of x, by name.
        x_name, y_name: titles of the axes.
        mark: an x and a text, to draw a vertical line there.
    """
    shown = {name: _thin([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return '<p class="note">no finite values to draw</p>'
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(0.0, *ys), max(ys))
    right = _WIDTH - 12

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (right - _LEFT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _BOTTOM - _TOP)

    parts = []
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, _number(tick), "end"))
    parts += [_text(place(tick, y_ticks[0])[0], _HEIGHT - _BOTTOM + 16, _number(tick), "middle") for tick in x_ticks]
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 6, x_name, "middle"))
    parts.append(f'<g transform="rotate(-90)">{_text(-(_HEIGHT - _BOTTOM) / 2, 14, y_name, "middle")}</g>')
    if mark is not None:
        x = place(mark[0], 0)[0]
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(_text(x - 4, _TOP + 10, mark[1], "end"))
    for index, (_, points) in enumerate(shown.items()):
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline style="stroke:{_color(index)}" points="{path}"/>')
        if len(places) <= 40:
            parts += [f'<circle style="fill:{_color(index)}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
    title = f"{y_name} over {x_name}: {', '.join(shown)}"
    return _legend(list(shown)) + _svg(_WIDTH, _HEIGHT, title, parts)


def bar_chart(values: Mapping[str, float], title: str, unit: str = "") -> str:
    """Return a horizontal bar for each name, with its value behind it."""
    row, left = 20, 210
    largest = max([*values.values(), 0.0]) or 1.0
    parts = []
    for index, (name, value) in enumerate(values.items()):
        y = 6 + index * row
        width = (_WIDTH - left - 110) * value / largest
        parts.append(_text(left - 6, y + 12, _cut(name, 32), "end"))
        parts.append(f'<rect style="fill:{_color(0)}" x="{left}" y="{y + 2}" width="{width:.1f}" height="{row - 6}"/>')
        parts.append(_text(left + width + 5, y + 12, f"{value:,.6g}{unit}", "start"))
    return _svg(_WIDTH, 12 + row * len(values), title, parts)


def confusion_chart(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Return a confusion matrix as squares, filled by the share of the right class; ``""`` if there are too many."""
    size = len(labels)
    if size > MAX_MATRIX:
        return ""
    cell = max(18, min(46, 420 // max(size, 1)))
    left, top = 150, 22
    parts = [_text(left + size * cell / 2, 14, "predicted class, in the order of the rows", "middle")]
    for right, row in enumerate(confusion):
        total = sum(row) or 1
        y = top + right * cell
        parts.append(_text(left - 6, y + cell / 2 + 4, _cut(labels[right], 20), "end"))
        for given, count in enumerate(row):
            x = left + given * cell
            color = _color(0 if right == given else 1)
            parts.append(
                f'<rect class="cell" style="fill:{color};fill-opacity:{count / total:.3f}" x="{x}" y="{y}" '
                f'width="{cell}" height="{cell}"><title>{escape(labels[right])} taken for {escape(labels[given])}: '
                f"{count:,}</title></rect>"
            )
            if count and cell >= 24:
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, f"{count:,}", "middle"))
    return _svg(max(left + size * cell + 8, 320), top + size * cell + 8, "confusion matrix", parts)


def plan_chart(plan: Mapping[str, Any]) -> str:
    """Return a plan's round (``Plan.model_dump()``) as bars: down, compute and up of each device, end, and bound."""
    row, left, right = 22, 170, _WIDTH - 16
    phases = ("down", "compute", "up")
    ends = [sum(part[f"{phase}_seconds"] for phase in phases) for part in plan["parts"]]
    end = plan["latency_seconds"] - plan["aggregation_seconds"]
    bound = plan["lower_bound_seconds"] - plan["aggregation_seconds"]
    scale = (right - left) / (max([*ends, end]) or 1.0)
    height = 10 + row * len(plan["parts"])
    parts = []
    for index, part in enumerate(plan["parts"]):
        y, x = 6 + index * row, float(left)
        parts.append(_text(left - 6, y + 14, _cut(f"{part['device']} {part['blocks']}", 26), "end"))
        for color, phase in enumerate(phases):
            width = part[f"{phase}_seconds"] * scale
            parts.append(
                f'<rect style="fill:{_color(color)}" x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{row - 6}">'
                f"<title>{phase} {part[f'{phase}_seconds']:.3f} s</title></rect>"
            )
            x += width
    for seconds, name, style in ((end, "end", ""), (bound, "bound", "stroke-dasharray:4 3")):
        x = left + seconds * scale
        parts.append(f'<line class="mark" style="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height}"/>')
        parts.append(_text(x - 3, height + (12 if name == "end" else 26), f"{name} {seconds:.3f} s", "end"))
    return _legend(phases) + _svg(_WIDTH, height + 32, "one round of the plan", parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: Sequence[str]) -> str:
    keys = (f'<span><i style="background:{_color(i)}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{"".join(keys)}</p>'


def _color(index: int) -> str:
    return f"var(--c{index % _COLORS + 1})"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _thin(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(index * step)] for index in range(MAX_POINTS)]


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that enclose an interval."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * index for index in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.6g}"
