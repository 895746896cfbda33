"""Planted faults change what they say, from the moment on, and nothing else."""

from __future__ import annotations

import polars as pl
import pytest

from schemas.errors import UsageError
from streams.demo import departures as source
from streams.demo.faults import FAULT_FROM, FAULTS, Fault, fault_named

HIT = {
    "none": pl.lit(value=False),
    "gate-to-runway": pl.lit(value=True),
    "ev-zero": pl.col("carrier") == "EV",
    "weather-null": pl.col("origin") == "JFK",
    "carrier-renamed": pl.col("carrier") == "EV",
    "state-frozen": pl.lit(value=True),
    "delay-plus-10": pl.col("origin") == "LGA",
}


@pytest.fixture(scope="module")
def week(departures: pl.DataFrame) -> pl.DataFrame:
    return departures.filter((pl.col("event_time") - FAULT_FROM).abs() < 3 * 86_400_000_000)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_changes_only_its_features_of_its_rows_from_its_moment_on(fault: Fault, week: pl.DataFrame) -> None:
    served = fault.apply(week)
    assert served.schema == week.schema
    hit = week.select((pl.col("event_time") >= FAULT_FROM) & HIT[fault.name]).to_series()
    for name in week.columns:
        same = week[name].eq_missing(served[name])
        assert (same | hit).all(), name
        assert same.all() == (name not in fault.features), name


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_that_never_begins_changes_nothing(fault: Fault, week: pl.DataFrame) -> None:
    after_all = int(week["event_time"][-1]) + 1
    assert fault.apply(week, moment=after_all).equals(week)


def test_gate_to_runway_adds_the_usual_taxi_time_and_nothing_of_the_future(week: pl.DataFrame) -> None:
    broken = FAULTS["gate-to-runway"].apply(week).filter(pl.col("event_time") >= FAULT_FROM)
    added = broken["dep_delay_known"] - broken["dep_delay"]
    assert added.is_between(8, 30).all()
    assert (added == added.round()).all()
    groups = broken.with_columns(added=added).group_by("origin", pl.col("sched_min") // 60)
    assert (groups.agg(pl.col("added").n_unique())["added"] == 1).all(), "known from origin and hour alone"


def test_nobody_leaves_early_under_gate_to_runway(week: pl.DataFrame) -> None:
    broken = FAULTS["gate-to-runway"].apply(week).filter(pl.col("event_time") >= FAULT_FROM)
    before = week.filter(pl.col("event_time") < FAULT_FROM, pl.col("sched_min") < 9 * 60)
    assert (before["dep_delay_known"] < 0).mean() > 0.7  # type: ignore[operator]
    assert (broken["dep_delay_known"].head(83) < 0).sum() == 0


def test_a_frozen_state_is_the_last_value_of_its_airport_or_carrier(week: pl.DataFrame) -> None:
    frozen = FAULTS["state-frozen"].apply(week)
    for key, names in (("origin", source.STATE[:2]), ("carrier", source.STATE[2:3])):
        for name in names:
            last = week.filter(pl.col("event_time") < FAULT_FROM).group_by(key, maintain_order=True).last()
            after = frozen.filter(pl.col("event_time") >= FAULT_FROM).select(key, name).unique()
            expected = after.select(key).join(last.select(key, name), on=key, how="left", maintain_order="left")
            assert after.sort(key).equals(expected.sort(key))


def test_an_unknown_fault_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="no fault 'gate'") as raised:
        fault_named("gate")
    assert "gate-to-runway" in raised.value.advice
    assert fault_named("ev-zero") is FAULTS["ev-zero"]
