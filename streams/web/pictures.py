"""The drawings of one model: a feature against training, its evidence, and quality over time.

From what :meth:`streams.web.view.View.gather` found; the page shows them, and ``flywheel drift --plot`` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from schemas.times import from_us
from streams.web.axes import Chart
from streams.web.charts import Mark, Point, evidence, histogram, lines
from streams.web.feature import axis_of

SCORES = {
    "psi": ("PSI", "0.1 and 0.25"),
    "ks": ("Kolmogorov-Smirnov", "p < 0.05"),
    "js": ("Jensen-Shannon distance, base 2", "0.1"),
    "w1": ("Wasserstein, in standard deviations", "0.1"),
    "hellinger": ("Hellinger", "0.4"),
    "linf": ("L-infinity (the cell that moved most)", "0.01 to 0.02"),
}
"""Name, and the constant that other tools hold it against."""


def score_rows(scores: dict[str, Any]) -> list[list[str]]:
    """A table of scores: value, by chance alone, less chance, what is usual."""
    rows = []
    for name, (title, usual) in SCORES.items():
        if scores[name] is not None:
            chance, less = scores["by_chance"].get(name), scores["corrected"].get(name)
            rows.append([title, _figure(scores[name]), _figure(chance), _figure(less), usual])
    rows.append(["chi-square, and its p-value", f"{scores['chi2']:.1f}", "", p_value(scores["chi2_p"]), "p < 0.05"])
    least = f"≥ {scores['shift_low']:.3f}"
    return [*rows, ["effect, as a shift of a normal in sd", _figure(scores["shift"]), "", least, "Flywheel: 0.1"]]


def p_value(p: float) -> str:
    """A p-value, as far as a double goes.

    >>> p_value(0.031), p_value(3e-124), p_value(0.0)
    ('0.031', '3e-124', '<1e-300')
    """
    return "<1e-300" if p < 1e-300 else f"{p:.2g}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def histogram_chart(feature: dict[str, Any]) -> Chart:
    """Served against training."""
    return histogram(feature["cells"], f"{feature['name']}: served against training")


def evidence_chart(view: dict[str, Any]) -> Chart | None:
    """The evidence of the shown feature by day; None where nothing was served."""
    feature = view["feature"]
    days = feature["evidence"]["days"]
    if not days:
        return None
    axis = axis_of([each["day"] for each in days])
    points = [
        Point(axis.index(each["day"]) + 0.5, each["orders"], title=f"{each['day']}: {each['orders']:+.1f}")
        for each in days
        if each["orders"] is not None
    ]
    change = feature["evidence"]["change"]
    place = None if change is None else float(axis.index(change))
    title = f"{feature['name']}: evidence against training"
    return evidence(points, axis, _about(view, axis), place, title=title)


def channel_chart(view: dict[str, Any]) -> Chart | None:
    """Channel D's evidence of the shown feature by day; None where it judged nothing."""
    feature = view["feature"]
    days = [each for each in feature["channel"] if each["orders"] is not None]
    if not days:
        return None
    axis = axis_of([each["day"] for each in [*feature["evidence"]["days"], *days]])
    points = [
        Point(
            axis.index(each["day"]) + 0.5,
            each["orders"],
            title=f"{each['day']}: z {each['z']:.1f}, the line is at {each['line']:.1f}",
        )
        for each in days
    ]
    title = f"{feature['name']}: evidence against the weeks before (channel drift)"
    return evidence(points, axis, _about(view, axis), None, title=title, limit="line: does it move the answers?")


def _about(view: dict[str, Any], axis: Sequence[str]) -> list[Mark]:
    """Champions, and the alerts about the shown feature."""
    name = view["feature"]["name"]
    about = [mark for mark in view["marks"] if mark["kind"] == "champion" or name in mark["title"].split()]
    return marks_of(about, axis, view["timezone"])


def quality_charts(view: dict[str, Any]) -> list[Chart]:
    """Loss, bias and the share of known truths by day, with bands, and shades where truths are still missing."""
    known = {day["day"]: day for day in view["days"]}
    axis = axis_of(list(known))
    young = [1.0 - known[day]["matured_share"] if day in known else 0.0 for day in axis]
    marks = marks_of(view["marks"], axis, view["timezone"])
    shown = [("log_loss", "log loss", "nats", False), ("bias", "bias: mean answer less mean truth", "", True)]
    if all(day["log_loss"] is None for day in view["days"]) and any(day["mae"] is not None for day in view["days"]):
        shown[0] = ("mae", "mean absolute error", "", False)
    charts = []
    for name, title, unit, zero in shown:
        points = [_point(axis.index(day), name, title, each) for day, each in known.items()]
        charts.append(lines(points, axis, young, marks, title=f"{title} by day", zero=zero, unit=unit))
    shares = [
        Point(
            axis.index(day) + 0.5,
            each["matured_share"],
            title=f"{day}: {each['matured_share'] * 100:.1f} % of {each['n']:,}",
        )
        for day, each in known.items()
    ]
    title = "share of predictions whose truth is known by day"
    charts.append(lines(shares, axis, [], marks, title=title, height=60, is_share=True))
    gap = _gap_chart(view)
    return [*charts, gap] if gap is not None else charts


def _gap_chart(view: dict[str, Any]) -> Chart | None:
    """What the calibrated scores let expect, less what came true: it leaves zero when the concept drifts."""
    standing = view.get("standing")
    if not standing or not standing["versions"]:
        return None
    days = standing["versions"][0]["days"]
    known = [day for day in days if day["difference"] is not None]
    if not known:
        return None
    axis = axis_of([day["day"] for day in days])
    young = {day["day"]: 1.0 - (day["coverage"] or 0.0) for day in days}
    points = []
    for day in known:
        value, (low, high) = day["difference"], day["interval"]
        said = f"{day['day']}: {value:+.4f} ({low:+.3f} to {high:+.3f})"
        points.append(Point(axis.index(day["day"]) + 0.5, value, low, high, said))
    title = f"{standing['metric']} expected by the scores, less realised, by day"
    marks = marks_of(view["marks"], axis, view["timezone"])
    return lines(points, axis, [young.get(day, 0.0) for day in axis], marks, title=title, zero=True)


def marks_of(marks: Sequence[dict[str, Any]], axis: Sequence[str], timezone: str) -> list[Mark]:
    """Alerts and champions that fall on the days of an axis."""
    if not axis:
        return []
    first, zone, found = date.fromisoformat(axis[0]), ZoneInfo(timezone), []
    for mark in marks:
        local = from_us(mark["time_us"]).astimezone(zone)
        x = (local.date() - first).days + (local.hour + local.minute / 60) / 24
        kind = mark["severity"] if mark["kind"] == "alert" else "champion"
        if 0 <= x <= len(axis):
            found.append(Mark(x, kind, f"{mark['time']} {mark['title']}: {mark['text']}"))
    return found


def _point(at: int, name: str, title: str, day: dict[str, Any]) -> Point:
    value, interval = day[name], day["intervals"].get(name)
    if interval is None:
        shown = "-" if value is None else f"{value:.3f}"
        return Point(at + 0.5, value, title=f"{day['day']}: {title} {shown}")
    said = f"{day['day']}: {title} {'-' if value is None else f'{value:.4f}'} ({interval[0]:.3f} to {interval[1]:.3f})"
    return Point(at + 0.5, value, interval[0], interval[1], f"{said}, {day['truths']:,} truths")
