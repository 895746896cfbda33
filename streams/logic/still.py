"""A feed that repeats its last value: cells propose it, exact values confirm it.

All rows of some hours in one cell of a number may be a frozen feed or a quiet night. Whether they hold one and the same
*value*, and whether that was ever repeated so long, is asked of the rows themselves, for the few fields that stand in
one cell: some dozens of rows later, where cells alone need three times their longest healthy run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.profile import FeatureProfile
from schemas.times import HOUR_US
from streams.logic.counts import Hour, LocalHours
from streams.logic.invariants import Breach
from streams.logic.policy import MonitorPolicy

HOURS_MIN = 2
"""A value that is repeated within one hour may be one that is read once an hour."""


class Rows(Protocol):
    """Asked by the monitor for what its counts do not hold."""

    def __call__(self, slice_name: str, start_us: int, end_us: int) -> pl.DataFrame:
        """Input rows of a slice with an event time in ``[start, end)``: id, event time and features."""


@dataclass(frozen=True)
class Run:
    """Consecutive rows with one value.

    Attributes
    ----------
    rows
        How many.
    hours
        How many of the hours that have rows they touch.
    """

    rows: int = 0
    hours: int = 0


def last_run(table: pl.DataFrame, name: str) -> Run:
    """The run that the newest row ends; a missing value ends any."""
    values, hours = _in_order(table, name)
    if not len(values) or np.isnan(values[-1]):
        return Run()
    others = np.flatnonzero(values != values[-1])
    first = int(others[-1]) + 1 if len(others) else 0
    return Run(len(values) - first, int(hours[-1] - hours[first]) + 1)


def longest_run(table: pl.DataFrame, feature: FeatureProfile) -> Run:
    """The most rows and the most hours that any value was repeated for, but for values so frequent that they have a
    cell of their own."""
    values, hours = _in_order(table, feature.name)
    if not len(values):
        return Run()
    starts = np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)
    ends = np.append(starts[1:], len(values)) - 1
    kept = ~np.isin(values[starts], feature.atoms)
    if not kept.any():
        return Run()
    return Run(int((ends - starts)[kept].max()) + 1, int((hours[ends] - hours[starts])[kept].max()) + 1)


@dataclass
class Still:
    """The rule: which fields repeat one value for longer than it ever was.

    Attributes
    ----------
    policy, local
        What is allowed, and the contract's clock.
    usual
        The longest run of the days that a day's baseline is made of, by slice and feature; worked out once a day.
    """

    policy: MonitorPolicy
    local: LocalHours
    usual: dict[tuple[str, str], Run] = field(default_factory=dict)

    def judge(
        self, standing: Sequence[tuple[str, FeatureProfile, int]], hour: Hour, day: int, rows: Rows
    ) -> list[Breach]:
        """What stands still at the end of an hour, of the fields (slice, feature, hours) that stand in one cell."""
        end_us, found = (hour + 1) * HOUR_US, []
        newest = {
            name: rows(name, end_us - HOURS_MIN * HOUR_US, end_us) for name in sorted({s for s, _, _ in standing})
        }
        for name, feature, hours in standing:
            if feature.name not in newest[name].columns or newest[name][feature.name].n_unique() > 1:
                continue
            served = rows(name, end_us - min(hours, self.policy.drift_hours[-1]) * HOUR_US, end_us)
            run = last_run(served, feature.name)
            if run.rows < self.policy.rows_min or run.hours < HOURS_MIN:
                continue
            usual = self._usual(name, feature, day, rows)
            limit = self.policy.still_factor * usual.rows
            if run.rows > limit and run.hours > usual.hours:
                found.append(Breach("frozen", name, feature.name, run.hours, run.rows, 1.0, max(1.0, limit), "page"))
        return found

    def _usual(self, slice_name: str, feature: FeatureProfile, day: int, rows: Rows) -> Run:
        key = slice_name, feature.name
        if key not in self.usual:
            newest = day - self.policy.baseline_gap_days
            first, after = (self.local.hours_of(at)[0] for at in (newest - self.policy.baseline_days, newest))
            known = rows(slice_name, first * HOUR_US, after * HOUR_US)
            self.usual[key] = longest_run(known, feature) if feature.name in known.columns else Run()
        return self.usual[key]


def _in_order(table: pl.DataFrame, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Values in the order of event time, NaN where there is none, and the number of each row's hour among those with
    rows."""
    if not table.height:
        return np.empty(0), np.empty(0, np.int64)
    rows = table.select("event_time", "prediction_id", name).sort("event_time", "prediction_id")
    hours = rows["event_time"].to_numpy() // HOUR_US
    places = np.append(0, np.cumsum(np.diff(hours) != 0)).astype(np.int64)
    return rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy(), places
