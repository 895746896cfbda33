"""A small seeded world for tests: rows with a daily cycle, a model that reads them, due truths, and faults."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.history import history_parts
from schemas.parts import Part
from schemas.profile import FieldSpec, Profile, build_profile
from schemas.times import DAY_US, HOUR_US, to_us
from streams.logic.counts import LocalHours
from streams.logic.impact import Impact, ImpactEvidence, put_back
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.policy import MonitorPolicy
from streams.logic.still import Rows

TIMEZONE = "America/New_York"
FIRST_US = to_us(datetime(2024, 1, 1, 5, tzinfo=UTC))
"""Local midnight of the first day."""
FIELDS = (FieldSpec("delay", "number"), FieldSpec("level", "number"), FieldSpec("region", "category"))
SLICES = (("region", "north"), ("region", "south"))

Fault = Callable[[pl.DataFrame], pl.DataFrame]


def predict(rows: pl.DataFrame) -> npt.NDArray[np.float64]:
    """The model: late when the delay is long, a little when the level is high."""
    delay = rows["delay"].fill_null(0.0).fill_nan(0.0).to_numpy()
    level = rows["level"].fill_null(0.0).fill_nan(0.0).to_numpy()
    return np.asarray(1.0 / (1.0 + np.exp(-(delay - 2.0 + 0.1 * level))))


class World:
    """Rows of so many days.

    Parameters
    ----------
    days
        Days from the first.
    rows_an_hour
        Mean at night; by day twice as many.
    seed
        Of everything.
    """

    def __init__(self, days: int, *, rows_an_hour: int = 20, seed: int = 7) -> None:
        self.days = days
        self._rng = np.random.default_rng(seed)
        self._rows_an_hour = rows_an_hour

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Healthy rows: what is asked and what becomes true."""
        rng = self._rng
        hours = np.arange(self.days * 24)
        is_day = (hours % 24 >= 7) & (hours % 24 < 20)
        sizes = rng.poisson(np.where(is_day, 2 * self._rows_an_hour, self._rows_an_hour))
        hour = np.repeat(hours, sizes)
        n = len(hour)
        cycle = np.where(hour % 24 < 12, -0.5, 0.5)
        weather = np.repeat(rng.normal(scale=0.3, size=self.days * 4), 6)[hour]
        delay = rng.normal(size=n) + cycle
        level = rng.normal(size=n) + weather
        region = np.where(rng.random(n) < 0.6, "north", "south")
        time = FIRST_US + hour.astype(np.int64) * HOUR_US + rng.integers(0, HOUR_US, n)
        likely = 1.0 / (1.0 + np.exp(-(delay - 2.0 + 0.1 * level)))
        table = pl.DataFrame(
            {
                "event_time": time,
                "due_time": time + 2 * HOUR_US,
                "delay": delay,
                "level": level,
                "region": region,
                "y": (rng.random(n) < likely).astype(np.float64),
            }
        ).sort("event_time")
        return table.with_columns(prediction_id=pl.format("p{}", pl.int_range(pl.len())))

    def served(self, fault: Fault | None = None, *, from_day: int = 0) -> pl.DataFrame:
        """Rows as they are served: a fault changes the features of the later ones, never the truth."""
        rows = self.rows
        if fault is not None:
            at = pl.col("event_time") >= FIRST_US + from_day * DAY_US
            rows = pl.concat([rows.filter(~at), fault(rows.filter(at))])
        score = predict(rows)
        label = np.where(score >= 0.5, "late", "on_time")
        return rows.with_columns(score=pl.Series(score), label=pl.Series(label))


def learn_profile(rows: pl.DataFrame) -> Profile:
    """The reference profile of these rows."""
    return build_profile(
        rows, FIELDS, model="world", score=rows["score"], label=rows["label"], labels=("late", "on_time")
    )


def make_parts(rows: pl.DataFrame, profile: Profile, version: str = "1") -> list[Part]:
    """Hourly parts of rows."""
    return history_parts(rows, profile, version=version, slices=SLICES)


def make_monitor(profile: Profile, start_day: int, policy: MonitorPolicy | None = None) -> Monitor:
    """A monitor of the world that starts serving on a day."""
    info = MonitorInfo("world", "1", TIMEZONE, tuple(f"{field}={value}" for field, value in SLICES))
    start_us = FIRST_US + start_day * DAY_US
    return Monitor(policy or MonitorPolicy(), info, profile, start_us, is_history_honest=True)


def make_rows(rows: pl.DataFrame) -> Rows:
    """These rows, by slice and time."""

    def between(slice_name: str, start_us: int, end_us: int) -> pl.DataFrame:
        found = rows.filter((pl.col("event_time") >= start_us) & (pl.col("event_time") < end_us))
        field, _, value = slice_name.partition("=")
        return found.filter(pl.col(field) == value) if value else found

    return between


def make_impact(rows: pl.DataFrame, policy: MonitorPolicy | None = None) -> Impact:
    """The put-back on these rows with the world's model."""
    rules, local, between = policy or MonitorPolicy(), LocalHours(TIMEZONE), make_rows(rows)

    def impact(slice_name: str, feature: str, start_us: int, end_us: int) -> ImpactEvidence | None:
        newest = end_us - rules.baseline_gap_days * DAY_US
        donors = between(slice_name, newest - rules.baseline_days * DAY_US, newest)
        return put_back(between(slice_name, start_us, end_us), donors, feature, predict, local, rules)

    return impact
