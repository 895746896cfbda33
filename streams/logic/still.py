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
from streams.logic.invariants import Breach, Run
from streams.logic.policy import MonitorPolicy

HOURS_MIN = 2
"""A value that is repeated within one hour may be one that is read once an hour."""


class Rows(Protocol):
    """Asked by the monitor for what its counts do not hold."""

    def __call__(self, slice_name: str, start_us: int, end_us: int) -> pl.DataFrame:
        """Input rows of a slice with an event time in ``[start, end)``: id, event time and features."""


def last_run(table: pl.DataFrame, name: str) -> Run:
    """The run that the newest of rows in order ends; a missing value ends any."""
    values = _values(table, name)
    if not len(values) or np.isnan(values[-1]):
        return Run()
    hours = _hours(table)
    others = np.flatnonzero(values != values[-1])
    first = int(others[-1]) + 1 if len(others) else 0
    return Run(len(values) - first, int(hours[-1] - hours[first]) + 1)


def longest_run(table: pl.DataFrame, feature: FeatureProfile) -> Run:
    """The most rows and the most hours that any value was repeated for, but for values so frequent that they have a
    cell of their own."""
    values = _values(table, feature.name)
    if not len(values):
        return Run()
    hours = _hours(table)
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
        self, standing: Sequence[tuple[str, FeatureProfile, Run]], hour: Hour, day: int, rows: Rows
    ) -> list[Breach]:
        """What stands still at the end of an hour, of the fields that stand in one cell: (slice, feature, how long)."""
        end_us, found = (hour + 1) * HOUR_US, []
        for name in dict.fromkeys(each[0] for each in standing):
            mine = [(f, cell) for place, f, cell in standing if place == name and self._can_be_long(name, f, cell)]
            if not mine:
                continue
            recent = rows(name, end_us - HOURS_MIN * HOUR_US, end_us)
            mine = [(f, cell) for f, cell in mine if f.name in recent.columns and recent[f.name].n_unique() == 1]
            if not mine:
                continue
            longest = min(max(cell.hours for _, cell in mine), self.policy.drift_hours[-1])
            served = in_order(rows(name, end_us - longest * HOUR_US, end_us))
            for feature, _ in mine:
                run = last_run(served, feature.name)
                if run.rows < self.policy.rows_min or run.hours < HOURS_MIN:
                    continue
                self._learn(name, [each for each, _ in mine], day, rows)
                if self._can_be_long(name, feature, run):
                    place = name, feature.name, run.hours, run.rows
                    limit = max(1.0, self.policy.still_factor * self.usual[name, feature.name].rows)
                    found.append(Breach("frozen", *place, 1.0, limit, "page"))
        return found

    def _can_be_long(self, slice_name: str, feature: FeatureProfile, run: Run) -> bool:
        """Whether a run is beyond what is usual, as far as that is known: a value stands no longer than its cell."""
        usual = self.usual.get((slice_name, feature.name), Run())
        return run.rows > self.policy.still_factor * usual.rows and run.hours > usual.hours

    def _learn(self, slice_name: str, features: Sequence[FeatureProfile], day: int, rows: Rows) -> None:
        unknown = [feature for feature in features if (slice_name, feature.name) not in self.usual]
        if not unknown:
            return
        newest = day - self.policy.baseline_gap_days
        first, after = (self.local.hours_of(at)[0] for at in (newest - self.policy.baseline_days, newest))
        known = in_order(rows(slice_name, first * HOUR_US, after * HOUR_US))
        for feature in unknown:
            run = longest_run(known, feature) if feature.name in known.columns else Run()
            self.usual[slice_name, feature.name] = run


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Rows as they were asked."""
    return table.sort("event_time", "prediction_id") if table.height else table


def _values(table: pl.DataFrame, name: str) -> npt.NDArray[np.float64]:
    return table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _hours(table: pl.DataFrame) -> npt.NDArray[np.int64]:
    """The number of each row's hour among those with rows."""
    hours = table["event_time"].to_numpy() // HOUR_US
    return np.append(0, np.cumsum(np.diff(hours) != 0)).astype(np.int64)
