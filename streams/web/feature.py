"""A model's features as they are served, against training: cells, scores, and the evidence day by day.

Reads windows and open summaries; what it returns is JSON. All counts are of local days.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from retrain.registry import CHAMPION
from schemas.parts import CELLS, Part
from schemas.profile import FeatureProfile
from schemas.times import from_us
from streams.config import ModelConfig
from streams.logic.counts import Layout
from streams.logic.edetector import detect
from streams.logic.policy import MonitorPolicy
from streams.logic.scores import compare
from streams.windows import WindowReader

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
    counts
        int64[day, column].
    versions
        Rows by version.
    """

    layout: Layout
    days: tuple[str, ...]
    counts: Ints
    versions: dict[str, int]

    @property
    def total(self) -> Ints:
        """All days together."""
        return np.asarray(self.counts.sum(axis=0), np.int64)

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
    return by_day(Layout(configured.profile, (slice_name,)), mine, ZoneInfo(configured.contract.timezone))


def by_day(layout: Layout, parts: Iterable[Part], zone: ZoneInfo) -> ServedDays:
    """Cells of parts by local day."""
    days: dict[str, Ints] = {}
    versions: dict[str, int] = {}
    for part in parts:
        place = part.codes.astype(np.int64) - CELLS
        known = (place >= 0) & (place < len(layout.column_of_code))
        column = layout.column_of_code[place[known]]
        kept = column >= 0
        day = from_us(part.window_us).astimezone(zone).date().isoformat()
        row = days.setdefault(day, np.zeros(layout.columns, np.int64))
        np.add.at(row, column[kept], part.counts[known][kept])
        first = kept & (column < layout.offsets[1])
        versions[part.version] = versions.get(part.version, 0) + int(part.counts[known][first].sum())
    listed = sorted(day for day, row in days.items() if row.any())
    counts = np.stack([days[day] for day in listed]) if listed else np.zeros((0, layout.columns), np.int64)
    return ServedDays(layout, tuple(listed), counts, {name: n for name, n in sorted(versions.items()) if n})


def scores_of(served: ServedDays, policy: MonitorPolicy) -> list[dict[str, Any]]:
    """Every feature's scores, and its evidence at the end; the most moved first."""
    features, found = served.layout.profile.features, []
    for place, feature in enumerate(features):
        scores = compare(feature, served.of(place, served.total))
        evidence = evidence_of(served, place, policy, [len(served.days)])
        top = [[feature.cell_label(cell), round(pull, 4)] for cell, pull in scores.top]
        found.append({"feature": feature.name, **scores.as_dict(), "top": top} | _last(evidence))
    return sorted(found, key=lambda row: (-row["eps"], row["feature"]))


def _last(evidence: dict[str, Any]) -> dict[str, Any]:
    days = evidence["days"]
    return {"orders": days[-1]["orders"] if days else None, "change": evidence["change"]}


def evidence_of(
    served: ServedDays, place: int, policy: MonitorPolicy, lengths: Sequence[int] | None = None
) -> dict[str, Any]:
    """The e-detector on daily counts of one feature: orders of magnitude above the line after each day.

    Parameters
    ----------
    lengths
        After so many days; default: after each.
    """
    feature, counts = served.layout.profile.features[place], served.of(place, served.counts)
    number, start, is_above = len(served.layout.profile.features), 0, False
    days: list[dict[str, Any]] = []
    for length in lengths if lengths is not None else range(1, len(served.days) + 1):
        if length:
            found = detect(feature, counts[:length], policy, number)
            start, is_above = found.start, found.orders >= 0
            days.append({"day": served.days[length - 1], "orders": round(found.orders, 3)})
    return {"days": days, "change": served.days[start] if is_above else None}


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
