"""Charts as SVG text: no library, no script, nothing from outside.

Pure functions of what they draw. Colours are classes of the page's style sheet; every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH = 860
LEFT, RIGHT, TOP = 52, 8, 10
PLOT_WIDTH = WIDTH - LEFT - RIGHT
TICKS = 4
LABEL_CHARS_MAX = 16


@dataclass(frozen=True)
class Point:
    """One day of a line; ``x`` counts days from the first one, a day's middle is at .5."""

    x: float
    value: float | None
    low: float | None = None
    high: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line: an alert, or a change of the champion."""

    x: float
    kind: str
    title: str


def text(value: Any) -> str:
    """Any value as text that is safe in HTML and SVG."""
    return escape(str(value), quote=True)


def histogram(cells: Sequence[dict[str, Any]], title: str) -> str:
    """Reference (wide, behind) against serving (narrow, in front), a column a cell.

    Parameters
    ----------
    cells
        ``label``, ``reference`` and ``serving`` (shares), ``count``.
    """
    if not cells:
        return ""
    height, labels = 190, 84
    top = max(max(c["reference"], c["serving"]) for c in cells) or 1.0
    ticks = nice_ticks(0.0, top)
    top = max(top, ticks[-1])
    base = TOP + height
    parts = [_grid(ticks, 0.0, top, TOP, height, lambda v: f"{v * 100:g} %")]
    step = PLOT_WIDTH / len(cells)
    for at, cell in enumerate(cells):
        x = LEFT + at * step
        said = (
            f"{cell['label']}: served {cell['serving']:.1%} ({cell['count']:,} rows), training {cell['reference']:.1%}"
        )
        parts.append(f"<g><title>{text(said)}</title>")
        for name, inset in (("reference", 0.08), ("serving", 0.26)):
            tall = height * cell[name] / top
            width = step * (1 - 2 * inset)
            parts.append(
                f'<rect class="{name}" x="{x + step * inset:.1f}" y="{base - tall:.1f}" width="{width:.1f}"'
                f' height="{tall:.1f}"/>'
            )
        middle, label = x + step / 2, _short(cell["label"])
        parts.append(
            f'<text class="tick" text-anchor="end" transform="translate({middle + 3:.1f} {base + 12}) rotate(-45)">'
            f"{text(label)}</text></g>"
        )
    return _svg(height + TOP + labels, title, parts)


def lines(
    points: Sequence[Point],
    days: Sequence[str],
    young: Sequence[float],
    marks: Sequence[Mark],
    *,
    title: str,
    height: int = 120,
    zero: bool = False,
    percent: bool = False,
) -> str:
    """A line over days with its band; a day is the darker, the fewer of its truths are known.

    Parameters
    ----------
    days
        Labels of all days of the axis, gaps included.
    young
        For each of them the share of truths that is missing.
    zero
        Draw the axis at 0 into the plot (bias), instead of starting there (a loss).
    """
    low, high = _domain(points, zero=zero)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    step = PLOT_WIDTH / max(1, len(days))

    def x_of(x: float) -> float:
        return LEFT + x * step

    def y_of(value: float) -> float:
        return TOP + height * (1 - (min(max(value, low), high) - low) / (high - low))

    parts = [
        f'<rect class="young" x="{x_of(at):.1f}" y="{TOP}" width="{step:.2f}" height="{height}"'
        f' fill-opacity="{0.45 * share:.3f}"/>'
        for at, share in enumerate(young)
        if share > 0
    ]
    form = (lambda v: f"{v * 100:g} %") if percent else (lambda v: f"{v:g}")
    parts.append(_grid(ticks, low, high, TOP, height, form))
    if zero:
        parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(0):.1f}" y2="{y_of(0):.1f}"/>')
    for run in _runs(points):
        banded = [p for p in run if p.low is not None and p.high is not None]
        if len(banded) == len(run):
            parts.append(_band(run, x_of, y_of, step))
        path = " ".join(f"{x_of(p.x):.1f},{y_of(p.value or 0.0):.1f}" for p in run)
        parts.append(f'<polyline class="line" points="{path}"/>')
    for p in points:
        if p.value is not None:
            parts.append(
                f'<circle class="dot" cx="{x_of(p.x):.1f}" cy="{y_of(p.value):.1f}" r="2.6">'
                f"<title>{text(p.title)}</title></circle>"
            )
    parts += [_mark(mark, x_of(mark.x), height) for mark in marks if 0 <= mark.x <= len(days)]
    parts += _days(days, step, TOP + height + 14)
    return _svg(height + TOP + 22, title, parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a range.

    >>> nice_ticks(0.0, 0.37)
    [0.0, 0.1, 0.2, 0.3, 0.4]
    >>> nice_ticks(-0.1, 0.3)
    [-0.1, 0.0, 0.1, 0.2, 0.3]
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        low, span = (low if math.isfinite(low) else 0.0), 1.0
    raw = span / TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    unit = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.floor(low / unit + 1e-9), math.ceil((low + span) / unit - 1e-9)
    return [round(unit * k, 12) for k in range(first, last + 1)]


def _domain(points: Sequence[Point], *, zero: bool) -> tuple[float, float]:
    """The range to draw: all values, and of the bands as much as leaves the values legible."""
    values = [p.value for p in points if p.value is not None] or [0.0]
    least, most = min(values), max(values)
    room = max(most - least, 0.5 * abs(most), 0.5 * abs(least), 0.02)
    lows = [p.low for p in points if p.low is not None] or [least]
    highs = [p.high for p in points if p.high is not None] or [most]
    low, high = max(min(least, *lows, least), least - room), min(max(most, *highs, most), most + room)
    return (min(low, 0.0), max(high, 0.0)) if zero else (min(0.0, least), high)


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Stretches of days that follow each other and have a value."""
    found: list[list[Point]] = []
    for p in points:
        if p.value is None:
            continue
        if found and abs(p.x - found[-1][-1].x - 1.0) < 1e-6:
            found[-1].append(p)
        else:
            found.append([p])
    return found


def _band(run: Sequence[Point], x_of: Any, y_of: Any, step: float) -> str:
    if len(run) == 1:  # a lone day has a band as wide as the day
        x, y, tall = x_of(run[0].x), y_of(run[0].high), y_of(run[0].low) - y_of(run[0].high)
        return f'<rect class="band" x="{x - step / 3:.1f}" y="{y:.1f}" width="{step / 1.5:.1f}" height="{tall:.1f}"/>'
    there = [f"{x_of(p.x):.1f},{y_of(p.high):.1f}" for p in run]
    back = [f"{x_of(p.x):.1f},{y_of(p.low):.1f}" for p in reversed(run)]
    return f'<polygon class="band" points="{" ".join(there + back)}"/>'


def _mark(mark: Mark, x: float, height: int) -> str:
    foot = TOP + height
    return (
        f'<g class="mark {text(mark.kind)}"><title>{text(mark.title)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{foot}"/>'
        f'<path d="M{x - 4:.1f} {TOP - 7}h8l-4 7z"/></g>'
    )


def _days(days: Sequence[str], step: float, y: int) -> list[str]:
    """As many labels as fit."""
    every = max(1, math.ceil(46 / step)) if days else 1
    return [
        f'<text class="tick" text-anchor="middle" x="{LEFT + (at + 0.5) * step:.1f}" y="{y}">{text(day[5:])}</text>'
        for at, day in enumerate(days)
        if at % every == 0
    ]


def _grid(ticks: Sequence[float], low: float, high: float, top: int, height: int, form: Any) -> str:
    parts = []
    for tick in ticks:
        y = top + height * (1 - (tick - low) / (high - low))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{text(form(tick))}</text>')
    return "".join(parts)


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARS_MAX else f"{label[: LABEL_CHARS_MAX - 1]}…"


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(title)}"'
        f' xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
