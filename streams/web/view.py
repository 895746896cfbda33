"""What the status page shows, as one JSON object: the status, one feature's histogram, quality over time.

Synchronous and free of HTTP; the page runs it in a thread, because SQL and decoding take their time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from retrain.registry import CHAMPION
from retrain.tables import alias_event
from schemas.errors import FlywheelError
from schemas.parts import ALL_SLICE, CELLS, CELLS_SIDE, N_INPUT, Part
from schemas.profile import FeatureProfile
from schemas.times import DAY_US, HOUR_US, format_us, parse_time
from streams.config import ModelConfig
from streams.days import quality_days
from streams.ends import LogEnds
from streams.logic.scores import compare
from streams.quality import QualityReader, Wanted
from streams.status import StatusReader, looking_at
from streams.tables import alert
from streams.weak import last

DAYS_DEFAULT = 30
DAYS_MAX = 92
RANGE_DEFAULT_US = DAY_US
RANGE_MAX_US = 92 * DAY_US
"""A quarter of 5-minute windows is 26 thousand rows: some seconds to add up."""
CELLS_SHOWN = 40
"""Columns of a histogram; the rarest categories beyond are shown as one."""


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
            days = quality_days(
                windows, connection, self.reader.config, model, last=choice.days, slice_name=shown["slice"]
            )
            shown["days"] = [day.as_dict() for day in days]
            shown["timezone"] = configured.contract.timezone if configured is not None else "UTC"
            shown["marks"] = _marks(connection, model)
            if configured is not None:
                wanted = Wanted(slice=shown["slice"])
                shown["standing"] = QualityReader(self.reader.config, windows).gather(connection, model, wanted)
                shown["weak"] = last(self.reader.config.state_dir, model)
            newest = windows.newest_us(connection, model)
            if configured is None or not configured.has_profile:
                return
            until = choice.until_us or (newest or 0) + HOUR_US
            start = choice.from_us if choice.from_us is not None else until - RANGE_DEFAULT_US
            if until - start > RANGE_MAX_US:
                start = until - RANGE_MAX_US
                notes.append(f"The histogram shows at most {RANGE_MAX_US // DAY_US} days.")
            parts = windows.parts(connection, model, slice_name=shown["slice"], from_us=start, until_us=until)
        shown["feature"] = _feature(configured, choice.feature, parts, notes)
        shown["feature"] |= {"from": format_us(start), "until": format_us(until)}


def _feature(configured: ModelConfig, name: str | None, parts: list[Part], notes: list[str]) -> dict[str, Any]:
    """One feature's cells: what training saw, what was served."""
    profile = configured.profile
    names = [feature.name for feature in profile.features]
    if name is not None and name not in names:
        notes.append(f"There is no feature '{name}'.")
    place = names.index(name) if name in names else 0
    feature = profile.features[place]
    served = [part for part in parts if part.role == CHAMPION]
    counts = cell_counts(served, place, feature.cell_count)
    scores = compare(feature, counts)
    return {
        "name": feature.name,
        "names": names,
        "rows": int(counts.sum()),
        "inputs": sum(int(part.counts[part.codes == N_INPUT].sum()) for part in served),
        "reference_rows": int(sum(feature.counts)),
        "cells": cells_of(feature, counts),
        "psi": scores.psi,
        "psi_by_chance": scores.psi_by_chance,
        "js": scores.js,
    }


def cell_counts(parts: list[Part], place: int, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows in each cell of the feature at this place of the profile."""
    first = CELLS + CELLS_SIDE * place
    total = np.zeros(size, np.int64)
    for part in parts:
        own = (part.codes >= first) & (part.codes < first + size)
        np.add.at(total, part.codes[own] - first, part.counts[own])
    return total


def cells_of(feature: FeatureProfile, counts: np.ndarray[Any, np.dtype[np.int64]]) -> list[dict[str, Any]]:
    """Columns of a histogram: cells with something in them, the rarest categories beyond the limit as one."""
    reference = np.asarray(feature.counts, np.int64)
    m, n = max(1, int(reference.sum())), max(1, int(counts.sum()))
    shown = [k for k in range(feature.cell_count) if reference[k] or counts[k]]
    rest: list[int] = []
    if len(shown) > CELLS_SHOWN and not feature.is_number:
        weight = {k: reference[k] / m + counts[k] / n for k in shown if k >= feature.specials}
        rest = sorted(weight, key=lambda k: (weight[k], k))[: len(shown) - CELLS_SHOWN + 1]
    found = [_cell(label_of(feature, k), int(reference[k]), int(counts[k]), m, n) for k in shown if k not in rest]
    if rest:
        found.append(_cell(f"{len(rest)} rarer", int(reference[rest].sum()), int(counts[rest].sum()), m, n))
    return found


def label_of(feature: FeatureProfile, cell: int) -> str:
    """A cell in few characters; one that begins right after a frequent value begins there, without it.

    >>> edges = (0.0, math.nextafter(0.0, 1.0), 2.5)
    >>> feature = FeatureProfile("f", "number", edges, (), (), (0,) * 8, (1.0,) * 8, 0, 0.0)
    >>> [label_of(feature, cell) for cell in range(4, 8)]
    ['< 0', '0', '0 to 2.5', 'from 2.5']
    """
    i = cell - feature.specials
    edges = feature.edges
    if not feature.is_number or i < 0 or not edges:
        return feature.cell_label(cell)
    if i == 0:
        return f"< {edges[0]:.4g}"
    low = edges[i - 1]
    if i >= 2 and low == math.nextafter(edges[i - 2], math.inf):
        low = edges[i - 2]
    if i == len(edges):
        return f"from {low:.4g}"
    if edges[i] == math.nextafter(edges[i - 1], math.inf):
        return f"{edges[i - 1]:.4g}"
    return f"{low:.4g} to {edges[i]:.4g}"


def _cell(label: str, reference: int, served: int, m: int, n: int) -> dict[str, Any]:
    return {"label": label, "count": served, "serving": served / n, "reference": reference / m}


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
