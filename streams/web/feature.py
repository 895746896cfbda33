"""A model's features as they are served, against training: cells, scores, and the evidence day by day.

Reads windows and open summaries; what it returns is JSON. The evidence is the meter's on hours, as a worker has it; but
how hours differ it learns from the first days that are shown, for it does not see the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from retrain.registry import CHAMPION
from schemas.parts import CELLS, N, Part
from schemas.profile import FeatureProfile
from schemas.times import HOUR_US
from streams.config import ModelConfig
from streams.logic.counts import Hour, Layout, LocalHours
from streams.logic.policy import MonitorPolicy
from streams.logic.scores import compare
from streams.logic.staleness import Meter, Reading
from streams.tables import drift_day
from streams.windows import WindowReader

EPOCH = date(1970, 1, 1)
CELLS_SHOWN = 40
"""Columns of a histogram; the rarest categories beyond are shown as one."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ServedDays:
    """Rows of one slice by local day.

    Attributes
    ----------
    layout
        Where a cell lies.
    days
        ISO 8601, increasing; days without a row are left out.
    hours
        Hour -> int64[column].
    local
        The model's clock.
    versions
        Rows by version.
    elsewhere
        Rows that were counted in the cells of another profile, and cannot be compared.
    """

    layout: Layout
    days: tuple[str, ...]
    hours: dict[Hour, Ints]
    local: LocalHours
    versions: dict[str, int]
    elsewhere: int = 0

    @cached_property
    def total(self) -> Ints:
        """All hours together."""
        return np.asarray(sum(self.hours.values(), np.zeros(self.layout.columns, np.int64)))

    def day(self, hour: Hour) -> str:
        """The local day of an hour."""
        return (EPOCH + timedelta(days=self.local(hour)[0])).isoformat()

    def of(self, place: int, counts: Ints) -> Ints:
        """The columns of a feature (last axis)."""
        return counts[..., self.layout.offsets[place] : self.layout.offsets[place + 1]]


def served_days(
    windows: WindowReader,
    connection: sa.Connection,
    configured: ModelConfig,
    *,
    slice_name: str,
    from_us: int,
    until_us: int,
    version: str | None = None,
) -> ServedDays:
    """What was served in ``[from, until)``: by champions, or by one version in any role."""
    found = windows.parts(connection, configured.name, slice_name=slice_name, from_us=from_us, until_us=until_us)
    mine = [p for p in found if (p.version == version if version else p.role == CHAMPION)]
    return by_day(Layout(configured.profile, (slice_name,)), mine, LocalHours(configured.contract.timezone))


def by_day(layout: Layout, parts: Iterable[Part], local: LocalHours) -> ServedDays:
    """Cells of parts by hour, and the local days that they make."""
    hours: dict[Hour, Ints] = {}
    versions: dict[str, int] = {}
    elsewhere = 0
    for part in parts:
        if not part.is_of(layout.profile.profile_id):
            elsewhere += int(part.counts[part.codes == N].sum())
            continue
        place = part.codes.astype(np.int64) - CELLS
        known = (place >= 0) & (place < len(layout.column_of_code))
        column = layout.column_of_code[place[known]]
        kept = column >= 0
        row = hours.setdefault(part.window_us // HOUR_US, np.zeros(layout.columns, np.int64))
        np.add.at(row, column[kept], part.counts[known][kept])
        first = kept & (column < layout.offsets[1])
        versions[part.version] = versions.get(part.version, 0) + int(part.counts[known][first].sum())
    served = {hour: hours[hour] for hour in sorted(hours) if hours[hour].any()}
    named = {name: n for name, n in sorted(versions.items()) if n}
    found = ServedDays(layout, (), served, local, named, elsewhere)
    return replace(found, days=tuple(dict.fromkeys(found.day(hour) for hour in served)))


def readings(served: ServedDays, policy: MonitorPolicy, place: int | None = None) -> list[tuple[str, Reading]]:
    """What the meter says of one feature at the end of each day; without a place, of all at the end of the last."""
    meter, found = Meter(served.layout, policy, served.local), []
    hours = [*served.hours, None]
    for hour, after in pairwise(hours):
        assert hour is not None
        meter.add(hour, served.hours[hour])
        if after is None or (place is not None and served.day(after) != served.day(hour)):
            found.append((served.day(hour), meter.read(place)))
    return found


def scores_of(served: ServedDays, policy: MonitorPolicy) -> list[dict[str, Any]]:
    """Every feature's scores, and its evidence at the end; the most moved first."""
    last, found = readings(served, policy), []
    for place, feature in enumerate(served.layout.profile.features):
        scores = compare(feature, served.of(place, served.total))
        evidence = evidence_of(served, place, last)
        top = [[feature.cell_label(cell), round(pull, 4)] for cell, pull in scores.top]
        orders = evidence["days"][-1]["orders"] if last else None
        told = {"orders": orders, "change": evidence["change"], "top": top}
        found.append({"feature": feature.name, **scores.as_dict(), **told})
    return sorted(found, key=lambda row: (-row["eps"], row["feature"]))


def evidence_of(served: ServedDays, place: int, read: Sequence[tuple[str, Reading]]) -> dict[str, Any]:
    """One feature's orders of magnitude above the line after each day, and the day since which it is above.

    Null while the meter learns how hours differ; if it never knew, they are of everything since the first day. Of a
    feature that training knows nothing of there is no evidence at all, and the meter's readings do not have it.
    """
    name = served.layout.profile.features[place].name
    days: list[dict[str, Any]] = []
    is_skew, orders, since = not read or read[-1][1].is_learning, -math.inf, None
    for day, reading in read:
        said = next((each for each in reading.features if each.feature == name), None)
        orders = -math.inf if said is None else said.skew_orders if is_skew else said.orders
        since = None if said is None else said.since
        days.append({"day": day, "orders": round(orders, 3) if math.isfinite(orders) else None})
    change = served.day(since) if since is not None and orders >= 0 else None
    return {"days": days, "change": change}


def channel_days(
    connection: sa.Connection,
    model: str,
    feature: str,
    slice_name: str,
    days: Sequence[str],
    version: str | None = None,
) -> list[dict[str, Any]]:
    """Channel D's evidence of a field against the weeks before, of the days from the first to the last.

    ``z`` and its ``line`` are of the window length that came nearest to its line; ``orders`` is their log likelihood
    ratio in decimal orders: above 0 the put-back is asked whether it matters. Where several versions were judged on one
    day, it is the nearest of them.
    """
    if not days:
        return []
    columns = drift_day.c
    query = sa.select(drift_day).where(columns.model == model, columns.day.between(min(days), max(days)))
    if version is not None:
        query = query.where(columns.version == version)
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(query.order_by(columns.day, columns.version)):
        z, line = row.evidence.get(slice_name, {}).get(feature, (None, None))
        orders = None if z is None else round((z * z - line * line) / 2.0 / math.log(10.0), 3)
        known = found.get(row.day, {}).get("orders")
        if known is None or (orders is not None and orders > known):
            found[row.day] = {"day": row.day, "z": z, "line": line, "orders": orders}
    return list(found.values())


def axis_of(days: Sequence[str]) -> list[str]:
    """All days from the first to the last.

    >>> axis_of(["2024-02-28", "2024-03-01"])
    ['2024-02-28', '2024-02-29', '2024-03-01']
    """
    if not days:
        return []
    first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
    return [(first + timedelta(days=k)).isoformat() for k in range((last - first).days + 1)]


# -- cells -----------------------------------------------------------------------------------------------------------


def cells_of(feature: FeatureProfile, counts: Ints) -> list[dict[str, Any]]:
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
