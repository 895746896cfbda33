"""``flywheel drift``: how far the features have moved from training, in the scores people know and in evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import UsageError
from streams.cli import Session, echo_json, echo_lines, json_option, moment, pass_session
from streams.cli.backtest import plot_option
from streams.cli.columns import only_model

if TYPE_CHECKING:
    from streams.config import ModelConfig
    from streams.web.axes import Chart, Table
    from streams.web.feature import ServedDays

DAYS = 30
BAR_WIDTH = 40
SPARKS = "▁▂▃▄▅▆▇█"
PICTURED = 6
"""Features drawn where none is named: those that moved most."""


@click.command()
@click.argument("feature", required=False)
@click.option("--model", help="Which; may be left out if there is only one.")
@click.option("--version", help="Served by this version, in any role; default: by the champions.")
@click.option("--slice", "slice_name", default="all", show_default=True, help="A declared slice, such as origin=JFK.")
@click.option(
    "--since",
    "since_us",
    callback=moment,
    metavar="TIME",
    help=f"From this local day on; default: the newest {DAYS} days.",
)
@plot_option
@json_option
@pass_session
def drift(
    session: Session,
    feature: str | None,
    model: str | None,
    version: str | None,
    slice_name: str,
    since_us: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Hold what is served against training: all features in a table, or FEATURE in full.

    The scores are those that other tools show, with what each would be by chance alone. The evidence is the
    e-detector's on hourly counts: orders of magnitude above its alarm line (below it, a minus). Unless the stream is
    declared stationary it wakes nobody.
    """
    from schemas.times import HOUR_US, format_us
    from streams.status import looking_at, open_status
    from streams.web.feature import axis_of, channel_days, served_days
    from streams.web.view import View

    config = session.config
    name = model or only_model(config)
    configured = config.model(name)
    _check(configured, feature, slice_name)
    reader = open_status(config)
    try:
        with looking_at(reader.engine) as connection:
            newest = reader.windows.newest_us(connection, name)
            until_us = (newest or 0) + HOUR_US
            served = served_days(
                reader.windows, connection, configured, version=version, slice_name=slice_name,
                from_us=_beginning(configured, newest or 0, since_us), until_us=until_us,
            )  # fmt: skip
        if not served.days:
            raise UsageError(
                f"Nothing was served of '{name}' ({slice_name}{f', {version}' if version else ''}) in that time.",
                action="See 'flywheel status', or name another --since, --version or --slice.",
            )
        told: dict[str, Any] = {
            "model": name, "slice": slice_name,
            "from": format_us(min(served.hours) * HOUR_US), "until": format_us((max(served.hours) + 1) * HOUR_US),
            "versions": served.versions, "days": len(served.days),
            "reference_rows": configured.profile.m, "rows_of_other_profiles": served.elsewhere,
        }  # fmt: skip
        if feature is None:
            told |= _all(configured, served)
        else:
            told |= _one(configured, served, feature)
            with looking_at(reader.engine) as connection:
                told["channel"] = channel_days(connection, name, feature, slice_name, served.days, version)
        if plot is not None:
            with looking_at(reader.engine) as connection:
                over_time = View(reader).over_time(connection, name, slice_name, len(axis_of(served.days)))
            _draw(plot, told, over_time, configured, served)
    finally:
        reader.engine.dispose()
    if as_json:
        echo_json(told)
    else:
        echo_lines(_table(told) if feature is None else _detail(told))
    if plot is not None:
        click.echo(f"drawn: {plot}", err=True)


def _beginning(configured: ModelConfig, newest_us: int, since_us: int | None) -> int:
    """Local midnight of the day that is asked for, or of the first of the newest."""
    from datetime import datetime, time, timedelta
    from zoneinfo import ZoneInfo

    from schemas.times import from_us, to_us

    zone = ZoneInfo(configured.contract.timezone)
    newest = from_us(newest_us).astimezone(zone).date()
    day = newest - timedelta(days=DAYS - 1) if since_us is None else from_us(since_us).date()
    return to_us(datetime.combine(day, time(), zone))


def _check(configured: ModelConfig, feature: str | None, slice_name: str) -> None:
    """Refuse what is not there, with the nearest that is."""
    from difflib import get_close_matches

    slices = ["all", *(each.name for each in configured.contract.slices())]
    features = [each.name for each in configured.profile.features]
    for what, given, known in (("feature", feature, features), ("slice", slice_name, slices)):
        if given is not None and given not in known:
            near = get_close_matches(given, known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(known[:20])}."
            raise UsageError(f"'{configured.name}' has no {what} '{given}'.", action=hint)


def _all(configured: ModelConfig, served: ServedDays) -> dict[str, Any]:
    from streams.web.feature import scores_of

    return {"features": scores_of(served, configured.monitor)}


def _one(configured: ModelConfig, served: ServedDays, name: str) -> dict[str, Any]:
    from streams.logic.scores import compare
    from streams.web.feature import cells_of, evidence_of, readings

    place = configured.profile.index[name]
    profile, counts = configured.profile.features[place], served.of(place, served.total)
    return {
        "feature": name,
        "scores": compare(profile, counts).as_dict(),
        "cells": cells_of(profile, counts),
        "evidence": evidence_of(served, place, readings(served, configured.monitor, place)),
    }


def _draw(path: Path, told: dict[str, Any], view: dict[str, Any], configured: ModelConfig, served: ServedDays) -> None:
    from streams.web.axes import Table, document, sheet
    from streams.web.pictures import (
        SCORES,
        channel_chart,
        evidence_chart,
        histogram_chart,
        quality_charts,
        score_rows,
    )

    said = f"{told['model']} ({', '.join(told['versions'])}), {told['slice']}, {_range(told)}"
    charts: list[Chart] = []
    tables: list[Table] = []
    if "features" in told:
        heading = "Features against training"
        for each in told["features"][:PICTURED]:
            one = _one(configured, served, each["feature"])
            charts.append(histogram_chart({"name": each["feature"], "cells": one["cells"]}))
        titles = [title for title, _ in SCORES.values()]
        head = ["feature", *titles, "chi-square p", "effect, sd", "evidence", "changed"]
        rows = [[row["feature"], *_figures(row, "")] for row in told["features"]]
        tables.append(Table("All features, the most moved first", head, rows))
    else:
        heading = f"{told['feature']} against training"
        feature = {"name": told["feature"], "cells": told["cells"], "evidence": told["evidence"]}
        shown = view | {"feature": feature | {"channel": told["channel"]}}
        charts = [histogram_chart(shown["feature"])]
        charts += [drawn for drawn in (evidence_chart(shown), channel_chart(shown)) if drawn is not None]
        charts += quality_charts(shown) if view["days"] else []
        head = ["score", "value", "by chance alone", "less chance", "what is usual"]
        tables.append(Table("Scores", head, score_rows(told["scores"])))
    text = sheet(heading, [said], charts) if path.suffix == ".svg" else document(heading, [said], charts, tables)
    path.write_text(text, encoding="utf-8")


def _range(told: dict[str, Any]) -> str:
    return f"{told['from'][:16]} to {told['until'][:16]} UTC"


def _head(told: dict[str, Any], rows: int) -> str:
    versions, rest = ", ".join(told["versions"]), told["rows_of_other_profiles"]
    other = f"; {rest:,} rows more were counted in another profile's cells" if rest else ""
    return (
        f"{told['model']} {versions}, {told['slice']}: {rows:,} rows of {told['days']} days, {_range(told)}; "
        f"training {told['reference_rows']:,} rows{'' if told['slice'] == 'all' else ', of all slices'}{other}"
    )


def _figures(row: dict[str, Any], nothing: str = "-") -> list[str]:
    """A feature's line: its scores, and its evidence."""
    from streams.web.pictures import p_value

    scores = [row[name] for name in ("psi", "ks", "js", "w1", "hellinger", "linf")]
    shown = [nothing if value is None else f"{value:.3f}" for value in scores]
    return [*shown, p_value(row["chi2_p"]), f"{row['shift']:.3f}", _orders(row["orders"]), row["change"] or nothing]


def _orders(orders: float | None) -> str:
    return "-" if orders is None else f"{orders:+.1f}"


def _table(told: dict[str, Any]) -> list[str]:
    features = told["features"]
    width = min(28, max(7, *(len(row["feature"]) for row in features)))
    names = ("PSI", "KS", "JS", "W1", "Hell.", "L-inf", "chi2 p", "effect", "evidence", "changed")
    lines = [
        _head(told, features[0]["rows"]),
        "",
        f"{'feature':<{width}}{''.join(f'{name:>9}' for name in names[:-1])}{names[-1]:>11}",
    ]
    for row in features:
        *scores, change = _figures(row)
        lines.append(f"{row['feature']:<{width}}{''.join(f'{figure:>9}' for figure in scores)}{change:>11}")
    top = features[0]
    by_chance = " and ".join(
        f"{name.upper()} {value:.3f}" for name, value in top["by_chance"].items() if name in ("psi", "js")
    )
    said = f"By chance alone '{top['feature']}' would have {by_chance}: see 'flywheel drift {top['feature']}'."
    effect = "Effect: the shift, in standard deviations, that moves a normal feature's cells as much."
    return [*lines, "", said, effect, "Evidence: orders of magnitude above the e-detector's line."]


def _detail(told: dict[str, Any]) -> list[str]:
    from streams.web.pictures import score_rows

    lines = [f"{told['feature']} of {_head(told, told['scores']['rows'])}", ""]
    top = max((max(c["serving"], c["reference"]) for c in told["cells"]), default=1.0) or 1.0
    width = min(24, max((len(c["label"]) for c in told["cells"]), default=1))
    lines.append(f"{'':<{width}}{'served':>9}{'training':>10}   █ served, │ training")
    for cell in told["cells"]:
        label = cell["label"][:width]
        shares = f"{cell['serving']:>9.1%}{cell['reference']:>10.1%}"
        lines.append(f"{label:<{width}}{shares}   {_bar(cell['serving'] / top, cell['reference'] / top)}")
    lines += ["", f"{'':<40}{'value':>10}{'by chance':>11}{'less it':>10}  usual constant"]
    for title, value, chance, less, usual in score_rows(told["scores"]):
        lines.append(f"{title:<40}{value:>10}{chance:>11}{less:>10}  {usual}")
    return [*lines, "", *_trail(told["evidence"]), *_course(told["channel"])]


def _bar(serving: float, reference: float) -> str:
    """What is served as a bar, and where it ended in training.

    >>> _bar(0.1, 0.2), _bar(0.1, 0.05)
    ('████   │', '█│██')
    """
    filled, mark = round(serving * BAR_WIDTH), round(reference * BAR_WIDTH)
    cells = ["█"] * filled + [" "] * max(0, mark - filled)
    if mark:
        cells[mark - 1] = "│"
    return "".join(cells).rstrip()


def _sparks(orders: Sequence[float]) -> tuple[str, str]:
    """Evidence as blocks, and the block of the line."""
    low, high = min(*orders, -1.0), max(*orders, 1.0)
    return "".join(_block(each, low, high) for each in orders), _block(0.0, low, high)


def _block(value: float, low: float, high: float) -> str:
    return SPARKS[min(7, int(8 * (value - low) / (high - low)))]


def _course(days: Sequence[dict[str, Any]]) -> list[str]:
    """Channel D's evidence by day."""
    known = [day for day in days if day["orders"] is not None]
    if not known:
        return []
    sparks, line = _sparks([day["orders"] for day in known])
    last = known[-1]
    return [
        f"channel  {known[0]['day']} {sparks} {last['day']}   the line is at {line}",
        f"  z {last['z']:.1f} against the weeks before, the line is at {last['line']:.1f}: above it the model is asked",
    ]


def _trail(evidence: dict[str, Any]) -> list[str]:
    """The evidence as one line of blocks, and what it says now."""
    orders = [day["orders"] for day in evidence["days"] if day["orders"] is not None]
    if not orders:
        return []
    sparks, line = _sparks(orders)
    said = f"{_orders(orders[-1])} orders of magnitude above the alarm line"
    since = f"; the change is estimated at {evidence['change']}" if evidence["change"] else " (below: nothing to see)"
    return [
        f"evidence {evidence['days'][0]['day']} {sparks} {evidence['days'][-1]['day']}   the line is at {line}",
        f"  {said}{since}",
    ]
