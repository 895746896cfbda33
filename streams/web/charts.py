"""Charts as SVG: histograms, quality and evidence over days, and the trade-off of rules.

Pure functions of what they draw, on the frame of :mod:`streams.web.axes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streams.web.axes import (
    LEFT,
    PLOT_WIDTH,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    below,
    grid,
    nice_ticks,
    percent,
    short,
    text,
)

HISTOGRAM_HEIGHT = 190
LABEL_SLANT, LABEL_ROOM = 4.8, 22
"""Height that a letter of a slanted label takes, and that none does without."""
COLUMN_WIDTH_MAX = 90
LINE_HEIGHT, EVIDENCE_HEIGHT, TRADE_HEIGHT = 120, 150, 260
FOOT = 36
DAY_LABEL_WIDTH = 46
PER_DAY_KEY = (("serving", "per day"), ("band", "valid at every look"), ("young", "truths still missing"))
RARE_WIDTH = 54
"""Of the place left of the axis where "none" is drawn, which a logarithm has no room for."""
OWN_LINE, OWN_LETTER = 14.0, 7.0
"""Height of a policy's name, and width of its letters."""
WEEK_H = 168.0
NEVER_H = 300.0
"""Where "not within a week" is drawn."""


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


@dataclass(frozen=True)
class Curve:
    """A rule at all its limits: (alarms a month, value, what is said of it), and the place of its usual limit."""

    name: str
    points: Sequence[tuple[float, float, str]]
    usual: tuple[float, float, str]


@dataclass(frozen=True)
class Own:
    """A policy of Flywheel's: alarms a month with their interval, and its value."""

    name: str
    x: float
    low: float
    high: float
    value: float
    title: str


def histogram(cells: Sequence[dict[str, Any]], title: str) -> Chart:
    """Reference (wide, behind) against serving (narrow, in front), a column a cell.

    Parameters
    ----------
    cells
        ``label``, ``reference`` and ``serving`` (shares), ``count``.
    """
    if not cells:
        return Chart(0, title, "")
    top = max(max(c["reference"], c["serving"]) for c in cells) or 1.0
    ticks = nice_ticks(0.0, top)
    top, foot = max(top, ticks[-1]), TOP + HISTOGRAM_HEIGHT

    def y_of(share: float) -> float:
        return foot - HISTOGRAM_HEIGHT * share / top

    parts = [grid(ticks, y_of, percent, "share of rows")]
    step = PLOT_WIDTH / len(cells)
    for at, cell in enumerate(cells):
        x = LEFT + at * step
        said = (
            f"{cell['label']}: served {cell['serving']:.1%} ({cell['count']:,} rows), training {cell['reference']:.1%}"
        )
        parts.append(f"<g><title>{text(said)}</title>")
        for name, share in (("reference", 0.84), ("serving", 0.48)):
            width, y = share * min(step, COLUMN_WIDTH_MAX), y_of(cell[name])
            parts.append(
                f'<rect class="{name}" x="{x + (step - width) / 2:.1f}" y="{y:.1f}" width="{width:.1f}"'
                f' height="{foot - y:.1f}"/>'
            )
        place = f"translate({x + step / 2 + 3:.1f} {foot + 12}) rotate(-45)"
        parts.append(
            f'<text class="tick" text-anchor="end" transform="{place}">{text(short(cell["label"]))}</text></g>'
        )
    key = (("reference", "training"), ("serving", "served"))
    letters = max(len(short(cell["label"])) for cell in cells)
    return Chart(foot + LABEL_ROOM + LABEL_SLANT * letters, title, "".join(parts), key)


def lines(
    points: Sequence[Point],
    days: Sequence[str],
    young: Sequence[float],
    marks: Sequence[Mark],
    *,
    title: str,
    height: int = LINE_HEIGHT,
    zero: bool = False,
    is_share: bool = False,
    unit: str = "",
) -> Chart:
    """A line over days with its band; a day is the darker, the fewer of its truths are known.

    Parameters
    ----------
    days
        Labels of all days of the axis, gaps included.
    young
        For each of them the share of truths that is missing.
    zero
        Draw the axis at 0 into the plot (bias), instead of starting there (a loss).
    unit
        What the vertical axis counts.
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
    parts.append(grid(ticks, y_of, percent if is_share else _number, unit))
    if zero:
        parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(0):.1f}" y2="{y_of(0):.1f}"/>')
    for run in _runs(points):
        banded = [p for p in run if p.low is not None and p.high is not None]
        if len(banded) == len(run):
            parts.append(_band(run, x_of, y_of, step))
        parts.append(_line(run, x_of, y_of))
    parts += _dots(points, x_of, y_of)
    parts += [_mark(mark, x_of(mark.x), height) for mark in marks if 0 <= mark.x <= len(days)]
    parts += _days(days, step, TOP + height + 14)
    parts.append(below("local day of the prediction", TOP + height + 29))
    key = PER_DAY_KEY if any(p.low is not None for p in points) else ()
    return Chart(TOP + height + FOOT, title, "".join(parts), key)


def evidence(
    points: Sequence[Point],
    days: Sequence[str],
    marks: Sequence[Mark],
    change: float | None,
    *,
    title: str,
    limit: str = "alarm line",
) -> Chart:
    """Orders of magnitude above the alarm line by day; beyond one they are drawn as their logarithm.

    Parameters
    ----------
    change
        Where the change point is estimated; None: nothing is above the line.
    limit
        What the line is called.
    """
    height = EVIDENCE_HEIGHT
    values = [p.value for p in points if p.value is not None] or [0.0]
    ticks = _order_ticks(min(*values, -1.0), max(*values, 1.0))
    low, high = _folded(ticks[0]), _folded(ticks[-1])
    step = PLOT_WIDTH / max(1, len(days))

    def x_of(x: float) -> float:
        return LEFT + x * step

    def y_of(value: float) -> float:
        return TOP + height * (1 - (min(max(_folded(value), low), high) - low) / (high - low))

    line, right = y_of(0.0), WIDTH - RIGHT
    parts = [
        f'<rect class="above" x="{LEFT}" y="{TOP}" width="{PLOT_WIDTH}" height="{line - TOP:.1f}"/>',
        grid(ticks, y_of, lambda v: f"{v:+g}" if v else "0", "orders of magnitude above the line"),
        f'<line class="limit" x1="{LEFT}" x2="{right}" y1="{line:.1f}" y2="{line:.1f}"/>',
        f'<text class="limit-text" text-anchor="end" x="{right - 4}" y="{line - 5:.1f}">{limit}</text>',
    ]
    if change is not None:
        x = x_of(change)
        anchor, away = ("end", -6) if change > 0.7 * len(days) else ("start", 6)
        parts.append(
            f'<g class="change"><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + height}"/>'
            f'<path d="M{x - 5:.1f} {TOP + height}h10l-5 -8z"/>'
            f'<text text-anchor="{anchor}" x="{x + away:.1f}" y="{TOP + height - 6}">change estimated here</text></g>'
        )
    parts += [_line(run, x_of, y_of) for run in _runs(points)]
    parts += _dots(points, x_of, y_of)
    parts += [_mark(mark, x_of(mark.x), height) for mark in marks if 0 <= mark.x <= len(days)]
    parts += _days(days, step, TOP + height + 14)
    parts.append(below("local day", TOP + height + 29))
    return Chart(TOP + height + FOOT, title, "".join(parts), (("serving", "evidence so far"),))


def trade_off(
    curves: Sequence[Curve], own: Sequence[Own], *, title: str, months: float, is_delay: bool = False
) -> Chart:
    """What each rule finds (a share), or how late (hours), against alarms a month at all its limits.

    Parameters
    ----------
    months
        How long was watched: the least number of alarms that could be seen is one in it.
    is_delay
        The values are hours; ``inf``: not within a week.
    """
    height, foot = TRADE_HEIGHT, TOP + TRADE_HEIGHT
    most = max([1.0, *(x for c in curves for x, _, _ in (*c.points, c.usual)), *(o.high for o in own)])
    least = math.log10(min(0.5 / months, 0.5))
    span = math.log10(most * 1.1) - least

    def x_of(x: float) -> float:
        if x <= 0:
            return LEFT + RARE_WIDTH / 2
        return LEFT + RARE_WIDTH + (PLOT_WIDTH - RARE_WIDTH - 8) * max(0.0, math.log10(x) - least) / span

    y_of = _delay_place(height, foot) if is_delay else _share_place(height, foot)
    ticks = [1.0, 4.0, 24.0, WEEK_H, NEVER_H] if is_delay else [0.0, 0.25, 0.5, 0.75, 1.0]
    form = _hours if is_delay else percent
    parts = [grid(ticks, y_of, form, "median hours until it is told" if is_delay else "found within a day")]
    parts += _decades(x_of, 10.0**least, most, foot)
    parts.append(below("alarms a month, nothing changed", foot + 32))
    for number, curve in enumerate(curves):
        path = " ".join(f"{x_of(x):.1f},{y_of(value):.1f}" for x, value, _ in curve.points)
        parts.append(f'<polyline class="curve s{number % 6}" points="{path}"/>')
        for x, value, said in curve.points:
            parts.append(_dot(f"f{number % 6}", x_of(x), y_of(value), 2.2, said))
        x, value, said = curve.usual
        parts.append(_dot(f"f{number % 6} usual", x_of(x), y_of(value), 6, said))
    free = TOP + 4.0
    for each in sorted(own, key=lambda each: y_of(each.value)):
        parts.append(_own(each, x_of, y_of(each.value), free := max(y_of(each.value) + 4, free + OWN_LINE)))
    key = [(f"f{number % 6}", f"{curve.name}") for number, curve in enumerate(curves)]
    return Chart(foot + 40, title, "".join(parts), (*key, ("own", "Flywheel, 95 %")))


def _own(own: Own, x_of: Callable[[float], float], y: float, label_y: float) -> str:
    """A policy, its interval, and its name where the interval ends."""
    x, low, high = x_of(own.x), x_of(own.low), x_of(own.high)
    anchor, at = ("start", high + 8) if high + 8 + OWN_LETTER * len(own.name) < WIDTH else ("end", low - 12)
    return (
        f"<g><title>{text(own.title)}</title>"
        f'<line class="own" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<path class="own" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
        f'<text class="own-text" text-anchor="{anchor}" x="{at:.1f}" y="{label_y:.1f}">{text(own.name)}</text></g>'
    )


def _share_place(height: float, foot: float) -> Callable[[float], float]:
    return lambda share: foot - height * share


def _delay_place(height: float, foot: float) -> Callable[[float], float]:
    """The sooner the higher, so that better is up as in the other chart."""
    return lambda hours: foot - height * (1 - math.log(min(max(hours, 1.0), NEVER_H)) / math.log(NEVER_H))


def _hours(hours: float) -> str:
    return {WEEK_H: "1 week", NEVER_H: "not", 24.0: "1 day"}.get(hours, f"{hours:g} h")


def _decades(x_of: Callable[[float], float], least: float, most: float, foot: float) -> list[str]:
    ticks = [0.0, *(f * 10.0**k for k in range(-2, 5) for f in (1, 2, 5) if least <= f * 10.0**k <= most * 1.05)]
    parts = []
    for tick in ticks:
        x = x_of(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{foot}"/>')
        label = "none" if tick == 0 else f"{tick:g}"
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{foot + 15}">{label}</text>')
    return parts


def _number(value: float) -> str:
    return f"{value:g}"


def _folded(value: float) -> float:
    """Linear up to one, then logarithmic, either side."""
    return value if abs(value) <= 1 else math.copysign(1 + math.log10(abs(value)), value)


def _order_ticks(low: float, high: float) -> list[float]:
    up = [10.0**k for k in range(max(0, math.ceil(math.log10(max(high, 1.0)) - 1e-9)) + 1)]
    down = [-(10.0**k) for k in range(max(0, math.ceil(math.log10(max(-low, 1.0)) - 1e-9)) + 1)]
    return [*reversed(down), 0.0, *up]


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


def _line(run: Sequence[Point], x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
    path = " ".join(f"{x_of(p.x):.1f},{y_of(p.value or 0.0):.1f}" for p in run)
    return f'<polyline class="line" points="{path}"/>'


def _dots(points: Sequence[Point], x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[str]:
    return [_dot("dot", x_of(p.x), y_of(p.value), 2.6, p.title) for p in points if p.value is not None]


def _dot(kind: str, x: float, y: float, radius: float, title: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{text(title)}</title></circle>'


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
    every = max(1, math.ceil(DAY_LABEL_WIDTH / step)) if days else 1
    return [
        f'<text class="tick" text-anchor="middle" x="{LEFT + (at + 0.5) * step:.1f}" y="{y}">{text(day[5:])}</text>'
        for at, day in enumerate(days)
        if at % every == 0
    ]
