"""A line of measured points as an SVG that stands by itself, readable on light and dark pages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from streams.web.axes import nice_ticks, text

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 34, 48
STYLE = (
    "text{font:12px sans-serif;fill:#666}.title{font-weight:bold}.grid{stroke:#999;stroke-opacity:.35}"
    ".ideal{stroke:#999;stroke-dasharray:4 4;fill:none}.line{stroke:#2b7bba;stroke-width:2;fill:none}.dot{fill:#2b7bba}"
)


def plot(points: Sequence[tuple[float, float]], title: str, x_label: str, y_label: str) -> str:
    """Points by their first value, from zero on; dashed, the straight line that fits them best."""
    x_ticks = nice_ticks(0.0, max(x for x, _ in points))
    y_ticks = nice_ticks(0.0, max(y for _, y in points))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * x / x_ticks[-1], TOP + height * (1 - y / y_ticks[-1])

    parts = [f'<text class="title" x="{LEFT}" y="18">{text(title)}</text>']
    for tick in y_ticks:
        _, y = at(0.0, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{LEFT + width}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for tick in x_ticks:
        x, y = at(tick, 0.0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:,g}</text>')
    parts.append(f'<text x="{LEFT + width / 2}" y="{HEIGHT - 10}" text-anchor="middle">{text(x_label)}</text>')
    middle = TOP + height / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{text(y_label)}</text>'
    )
    base, slope = fit(points)
    ends = [at(x, base + slope * x) for x in (points[0][0], points[-1][0])]
    parts.append(f'<path class="ideal" d="M{_path(ends)}"/>')
    parts.append(f'<path class="line" d="M{_path([at(x, y) for x, y in points])}"/>')
    for x, y in points:
        left, top = at(x, y)
        parts.append(f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="4"><title>{x:,g}: {y:g}</title></circle>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{text(title)}"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Base and slope of the straight line of least squares.

    >>> fit([(1.0, 3.0), (2.0, 5.0), (3.0, 7.0)])
    (1.0, 2.0)
    """
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def bend(points: Sequence[tuple[float, float]]) -> float:
    """Slope at the end over slope at the beginning: 1 on a straight line, more where cost grows faster than that.

    >>> bend([(1.0, 3.0), (2.0, 5.0), (4.0, 9.0)])
    1.0
    """
    slopes = [(y - was) / (x - before) for (before, was), (x, y) in itertools.pairwise(points)]
    return slopes[-1] / slopes[0]


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
