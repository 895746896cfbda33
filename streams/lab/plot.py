"""The trade-off of rules as a picture: what each finds, and how late, against its alarms with nothing changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from schemas.times import format_us
from streams.lab.backtest import Backtest, Found, Ruled
from streams.lab.planted import WITHIN_HOURS, shares
from streams.lab.runs import Performance
from streams.web.axes import Chart, Table, document, sheet
from streams.web.charts import Curve, Own, trade_off

DAY_H = WITHIN_HOURS[1]


def draw_trade_off(found: Found, heading: str, said: Sequence[str], path: Path) -> None:
    """Write the picture: an SVG, or a page with the figures, by the file's name."""
    drawn = charts(found)
    text = sheet(heading, said, drawn) if path.suffix == ".svg" else document(heading, said, drawn, tables(found))
    path.write_text(text, encoding="utf-8")


def charts(found: Found) -> list[Chart]:
    """Share found within a day, and median delay, over alarms a month."""
    first = next(iter(found.policies.values()))
    number, months = sum(first.is_hurting), first.months
    return [
        trade_off(
            [_curve(each, is_delay=is_delay) for each in found.rules.values()],
            [_own(name, each, is_delay=is_delay) for name, each in found.policies.items()],
            title=title.format(number),
            months=months,
            is_delay=is_delay,
        )
        for is_delay, title in (
            (False, "Share of {} planted changes that is told within a day (up is better, left is quieter)"),
            (True, "Median delay over {} planted changes (up is sooner, left is quieter)"),
        )
    ]


def tables(found: Found) -> list[Table]:
    """What the charts show in figures."""
    head = ["rule", "limit", "alarms a month", "of features", "in alarm", "in 4 h", "in 24 h", "in 7 d", "median"]
    rows = []
    for name, each in found.policies.items():
        hours = shares([o.hours for o, hurts in zip(each.outcomes, each.is_hurting, strict=True) if hurts])
        rows.append([f"Flywheel, {name}", "", f"{each.pages_a_month:.2f}", "", "", *_figures(hours)])
    for ruled in found.rules.values():
        for what, usual in (("usual", ruled.usual), ("as quiet as Flywheel", ruled.matched)):
            if usual is not None:
                rows.append([f"{ruled.run.rule.label}, {what}", *_performance(usual, ruled.policy)])
    curves = [
        [ruled.run.rule.name, *_performance(each, ruled.policy)]
        for ruled in found.rules.values()
        for each in ruled.swept
    ]
    return [
        Table("At their usual limits, and as quiet as Flywheel", head, rows),
        Table("At all limits that were tried", head, curves),
    ]


def _performance(usual: Performance, policy: Backtest) -> list[str]:
    limit = "0" if usual.limit == 0 else f"{usual.limit:.3g}"
    told = usual.told(policy.is_hurting)
    return [
        limit,
        f"{usual.alarms_a_month:.2f}",
        f"{usual.feature_alarms / usual.months:.1f}",
        f"{told['in_alarm']:.0%}",
        *_figures(told),
    ]


def _figures(told: dict[str, float | None]) -> list[str]:
    within = [told[f"within_{limit}_h"] for limit in WITHIN_HOURS]
    median = told["median_h"]
    return [*("-" if v is None else f"{v:.2f}" for v in within), "-" if median is None else f"{median:.0f} h"]


def _value(hours: Sequence[float | None], *, is_delay: bool) -> float:
    told = shares(hours)
    if not is_delay:
        return float(told[f"within_{DAY_H}_h"] or 0.0)
    return math.inf if told["median_h"] is None else float(told["median_h"])


def _said(value: float, *, is_delay: bool) -> str:
    if not is_delay:
        return f"{value:.0%} within a day"
    return f"median {value:.0f} h" if math.isfinite(value) else "most not within a week"


def _curve(ruled: Ruled, *, is_delay: bool) -> Curve:
    def place(each: Performance) -> tuple[float, float, str]:
        value = _value(each.of(ruled.policy.is_hurting), is_delay=is_delay)
        said = f"{ruled.run.rule.name} above {each.limit:.3g}: {each.alarms_a_month:.1f} a month"
        if ruled.run.rule.kind.is_p or ruled.run.rule.kind.statistic is None:
            said = said.replace("above", "at")
        return each.alarms_a_month, value, f"{said}, {_said(value, is_delay=is_delay)}"

    shown = sorted([*ruled.swept, ruled.usual], key=lambda each: each.alarms)
    return Curve(ruled.run.rule.label, [place(each) for each in shown], place(ruled.usual))


def _own(name: str, each: Backtest, *, is_delay: bool) -> Own:
    hours = [o.hours for o, hurts in zip(each.outcomes, each.is_hurting, strict=True) if hurts]
    value, (low, high) = _value(hours, is_delay=is_delay), each.interval()
    title = f"Flywheel, {name}: {each.pages_a_month:.2f} pages a month, {_said(value, is_delay=is_delay)}"
    return Own(name, each.pages_a_month, low, high, value, title)


def lines_said(found: Found, model: str) -> list[str]:
    """What a reader of the picture must know."""
    first = next(iter(found.policies.values()))
    recording = first.watched.recording
    watched = f"{format_us(recording.start_us)[:10]} to {format_us(recording.end_us)[:10]}"
    kinds = sorted({f"{o.plant.kind} {o.plant.amount:g}" for o in first.outcomes})
    return [
        f"{model}, {watched}, {first.months:.1f} months; large dots: the limit that is asked for; changes planted: "
        f"{', '.join(kinds) or 'none'}.",
        "An alarm is a window in which some feature, or the score, is above the limit; of Flywheel, a page. A change "
        "is told of when the changed feature, or the score, is in alarm where it is not without the change.",
    ]
