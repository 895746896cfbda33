"""What the status page shows, as one JSON object: the status, one feature's histogram, quality over time.

Synchronous and free of HTTP; the page runs it in a thread, because SQL and decoding take their time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from retrain.registry import CHAMPION
from retrain.tables import alias_event
from schemas.errors import FlywheelError
from schemas.parts import ALL_SLICE
from schemas.times import DAY_US, HOUR_US, format_us, parse_time
from streams.config import ModelConfig
from streams.days import quality_days
from streams.ends import LogEnds
from streams.logic.scores import compare
from streams.quality import QualityReader, Wanted
from streams.status import StatusReader, looking_at
from streams.tables import alert
from streams.weak import last
from streams.web.feature import ServedDays, cells_of, channel_days, evidence_of, readings, served_days

DAYS_DEFAULT = 30
DAYS_MAX = 92
RANGE_DEFAULT_US = DAY_US
RANGE_MAX_US = 92 * DAY_US
"""A quarter of 5-minute windows is 26 thousand rows: some seconds to add up."""


@dataclass(frozen=True)
class Choice:
    """What the reader of the page asked for; None: the default."""

    model: str | None = None
    feature: str | None = None
    slice: str = ALL_SLICE
    from_us: int | None = None
    until_us: int | None = None
    days: int = DAYS_DEFAULT
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Choice:
        """Read a query string; what cannot be read becomes the default and a note."""
        notes = []
        times: dict[str, int | None] = {}
        for name in ("from", "until"):
            text = query.get(name, "").strip()
            try:
                times[name] = parse_time(text) if text else None
            except (ValueError, OverflowError):
                times[name] = None
                notes.append(f"'{text[:40]}' is not a time: use 2013-05-06T09:00.")
        days = query.get("days", "")
        number = int(days) if days.isascii() and days.isdigit() and len(days) < 5 else DAYS_DEFAULT
        return cls(
            model=query.get("model") or None,
            feature=query.get("feature") or None,
            slice=query.get("slice") or ALL_SLICE,
            from_us=times["from"],
            until_us=times["until"],
            days=min(max(number, 1), DAYS_MAX),
            notes=tuple(notes),
        )


@dataclass
class View:
    """Gathers the page's content.

    Parameters
    ----------
    reader
        Of the installation that is shown.
    """

    reader: StatusReader

    def gather(self, choice: Choice, ends: LogEnds) -> dict[str, Any]:
        """Status and charts."""
        status = self.reader.gather(ends)
        names = list(status["models"])
        model = choice.model if choice.model in names else (names[0] if names else None)
        notes = list(choice.notes)
        if choice.model and choice.model != model:
            notes.append(f"There is no model '{choice.model}'.")
        shown: dict[str, Any] = {"status": status, "model": model, "slice": ALL_SLICE, "slices": [ALL_SLICE]}
        shown |= {"feature": None, "days": [], "days_asked": choice.days, "marks": [], "notes": notes}
        shown |= {"standing": None, "weak": None}
        if model is None:
            return shown
        configured = self.reader.config.models.get(model)
        if configured is None:
            notes.append(f"The model '{model}' is not configured: its contract and profile are not known.")
        try:
            self._add_charts(shown, choice, model, configured, notes)
        except FlywheelError as error:  # a contract or profile that is gone, or broken
            notes.append(str(error))
        return shown

    def over_time(self, connection: sa.Connection, model: str, slice_name: str, days: int) -> dict[str, Any]:
        """Quality by day, and what happened meanwhile."""
        config = self.reader.config
        found = quality_days(self.reader.windows, connection, config, model, last=days, slice_name=slice_name)
        shown = {"days": [day.as_dict() for day in found], "marks": _marks(connection, model)}
        if model not in config.models:
            return shown | {"timezone": "UTC", "standing": None}
        report = QualityReader(config, self.reader.windows).gather(connection, model, Wanted(slice=slice_name))
        return shown | {"timezone": config.models[model].contract.timezone, "standing": report}

    def _add_charts(
        self, shown: dict[str, Any], choice: Choice, model: str, configured: ModelConfig | None, notes: list[str]
    ) -> None:
        if configured is not None:
            shown["slices"] = [ALL_SLICE, *(each.name for each in configured.contract.slices())]
        if choice.slice in shown["slices"]:
            shown["slice"] = choice.slice
        else:
            notes.append(f"There is no slice '{choice.slice}'.")
        windows = self.reader.windows
        with self.reader.lock, looking_at(self.reader.engine) as connection:
            shown |= self.over_time(connection, model, shown["slice"], choice.days)
            if configured is not None:
                shown["weak"] = last(self.reader.config.state_dir, model)
            newest = windows.newest_us(connection, model)
            if configured is None or not configured.has_profile:
                return
            until = choice.until_us or (newest or 0) + HOUR_US
            start = choice.from_us if choice.from_us is not None else until - RANGE_DEFAULT_US
            if until - start > RANGE_MAX_US:
                start = until - RANGE_MAX_US
                notes.append(f"The histogram shows at most {RANGE_MAX_US // DAY_US} days.")
            asked = {"slice_name": shown["slice"], "until_us": until}
            served = served_days(windows, connection, configured, from_us=start, **asked)
            recent = served_days(windows, connection, configured, from_us=until - choice.days * DAY_US, **asked)
            if recent.elsewhere:
                notes.append(
                    f"{recent.elsewhere:,} rows were counted in another profile's cells: they are not compared."
                )
            feature = _feature(configured, choice.feature, served, recent, notes)
            channel = channel_days(connection, model, feature["name"], shown["slice"], recent.days)
        shown["feature"] = feature | {"channel": channel}
        shown["feature"] |= {"from": format_us(start), "until": format_us(until)}


def _feature(
    configured: ModelConfig, name: str | None, served: ServedDays, recent: ServedDays, notes: list[str]
) -> dict[str, Any]:
    """One feature's cells: what training saw, what was served; its scores, and the evidence of the days."""
    profile = configured.profile
    names = [feature.name for feature in profile.features]
    if name is not None and name not in names:
        notes.append(f"There is no feature '{name}'.")
    place = names.index(name) if name in names else 0
    feature = profile.features[place]
    counts = served.of(place, served.total)
    return {
        "name": feature.name,
        "names": names,
        "rows": int(counts.sum()),
        "reference_rows": int(sum(feature.counts)),
        "cells": cells_of(feature, counts),
        "scores": compare(feature, counts).as_dict(),
        "evidence": evidence_of(recent, place, readings(recent, configured.monitor, place)),
    }


def _marks(connection: sa.Connection, model: str) -> list[dict[str, Any]]:
    """Alerts and changes of the champion, in the order of time."""
    alerts = connection.execute(
        sa.select(alert).where(alert.c.model == model, alert.c.state != "closed").order_by(alert.c.time_us)
    )
    found = [
        {
            "time_us": row.time_us, "time": format_us(row.time_us), "kind": "alert", "severity": row.severity,
            "title": f"{row.channel} {row.subject} ({row.slice})", "text": row.message,
            "is_open": row.closed_us is None,
        }
        for row in alerts
    ]  # fmt: skip
    moves = sa.select(alias_event).where(alias_event.c.model == model, alias_event.c.alias == CHAMPION)
    for row in connection.execute(moves.order_by(alias_event.c.id)):
        mark = {"time_us": row.time_us, "time": format_us(row.time_us), "kind": "champion", "severity": ""}
        found.append(mark | {"title": row.version, "text": f"{row.action}: {row.reason}", "is_open": False})
    return sorted(found, key=lambda mark: (mark["time_us"], mark["title"]))
