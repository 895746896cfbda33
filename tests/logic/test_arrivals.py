"""What comes and whether it comes: silence, lateness, twice, foreign, unscored; quiet while all is as usual."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache

import numpy as np
import polars as pl
import pytest

from schemas.parts import ARRIVED_FOREIGN, ARRIVED_TRUTHS, ARRIVED_TWICE, LATENESS, LOG_SIDE, N_SCORED, Part
from schemas.profile import Profile
from schemas.times import DAY_US, HOUR_US, to_us
from streams.logic.arrivals import FEEDBACK, INPUTS, PREDICTIONS
from streams.logic.counts import LocalHours
from streams.logic.incident import AlertRecord
from streams.logic.monitor import Monitor
from streams.logic.policy import MonitorPolicy
from streams.logic.state import restore, snapshot
from streams.logic.testing import FIRST_US, World, learn_profile, make_monitor, make_parts

HISTORY_DAYS, FAULT_DAY, END_DAY = 1, 29, 31
FAULT_HOUR = 10
"""Of the local day, when a fault begins."""
POLICY = MonitorPolicy(
    baseline_days_min=60, volume_rows=40
)  # drift has nothing to say here: what comes is looked at alone
Change = Callable[[dict[int, int]], dict[int, int]]


@cache
def rows() -> pl.DataFrame:
    return World(END_DAY, rows_an_hour=30).served()


@cache
def profile() -> Profile:
    return learn_profile(rows())


def moment_us(hours: float = 0) -> int:
    return int(FIRST_US + FAULT_DAY * DAY_US + (FAULT_HOUR + hours) * HOUR_US)


def arrived(served: pl.DataFrame, late_bin: int = 3) -> list[Part]:
    """The log axis of rows whose inputs, predictions and truths all came."""
    hours, sizes = np.unique(served["event_time"].to_numpy() // HOUR_US, return_counts=True)
    found = []
    for hour, n in zip(hours.tolist(), sizes.tolist(), strict=True):
        counts = {LOG_SIDE * topic + LATENESS + late_bin: n for topic in (INPUTS, PREDICTIONS, FEEDBACK)}
        found.append(log_part(hour, counts | {LOG_SIDE * FEEDBACK + ARRIVED_TRUTHS: n}))
    return found


def log_part(hour: int, counts: dict[int, int]) -> Part:
    codes = np.array(sorted(counts), np.int32)
    return Part("world", "", "", "all", "log", hour * HOUR_US, codes, np.array([counts[c] for c in codes.tolist()]))


def changed(parts: list[Part], change: Change) -> list[Part]:
    """The log axis with other counters from the fault on."""
    return [log_part(p.window_us // HOUR_US, change(p.as_dict())) if p.window_us >= moment_us() else p for p in parts]


def begun() -> Monitor:
    monitor = make_monitor(profile(), HISTORY_DAYS, POLICY)
    monitor.add(make_parts(rows().filter(pl.col("event_time") < FIRST_US + HISTORY_DAYS * DAY_US), profile()))
    return monitor


def run(served: pl.DataFrame, log: list[Part], *, until_us: int | None = None) -> list[AlertRecord]:
    monitor = begun()
    monitor.add(make_parts(served.filter(pl.col("event_time") >= FIRST_US + HISTORY_DAYS * DAY_US), profile()))
    monitor.add(log)
    return [a for a in monitor.advance(until_us or FIRST_US + END_DAY * DAY_US) if a.state != "closed"]


def said(alerts: list[AlertRecord]) -> set[tuple[str, str, str, str]]:
    return {(a.severity, a.subject, a.detail["rule"], a.slice) for a in alerts}


def only(alerts: list[AlertRecord]) -> AlertRecord:
    (alert,) = alerts
    return alert


def test_nothing_is_said_while_everything_comes() -> None:
    assert run(rows(), arrived(rows())) == []


def test_nothing_is_said_of_a_replay_whose_records_are_all_years_late() -> None:
    assert run(rows(), arrived(rows(), late_bin=28)) == []


def silent(served: pl.DataFrame, hours: float = 6) -> pl.DataFrame:
    return served.filter(~pl.col("event_time").is_between(moment_us(), moment_us(hours), closed="left"))


def test_a_stream_that_falls_silent_is_told_within_two_hours() -> None:
    left = silent(rows())
    alerts = run(left, arrived(left))
    assert {
        ("critical", name, "volume", "all") for name in ("@monitored", "@inputs", "@predictions", "@truths")
    } == said(alerts)
    first = alerts[0]
    assert moment_us() < first.event_time_us <= moment_us(2)
    assert "the stream is silent" in first.message
    assert first.detail["usual"] >= 40
    assert len({a.incident_id for a in alerts}) == 1


def test_a_version_is_not_silent_before_services_have_taken_it_up() -> None:
    monitor = make_monitor(profile(), FAULT_DAY, POLICY)
    start_us, taken_up_us = FIRST_US + FAULT_DAY * DAY_US, FIRST_US + FAULT_DAY * DAY_US + 26 * HOUR_US
    since = rows().filter(pl.col("event_time") >= taken_up_us)
    monitor.add(make_parts(rows().filter(pl.col("event_time") < start_us), profile()))
    monitor.add(make_parts(since.filter(pl.col("event_time") < taken_up_us + 8 * HOUR_US), profile()))
    monitor.add(arrived(rows()))
    assert monitor.advance(taken_up_us + 8 * HOUR_US) == []
    assert said(monitor.advance(FIRST_US + END_DAY * DAY_US)) == {("critical", "@monitored", "volume", "all")}


def test_truths_that_stop_coming_are_told_though_predictions_go_on() -> None:
    log = changed(arrived(rows()), lambda counts: {c: n for c, n in counts.items() if c < LOG_SIDE * FEEDBACK})
    alert = only(run(rows(), log))
    assert said([alert]) == {("critical", "@truths", "volume", "all")}
    assert "0 truths came where" in alert.message


def test_a_slice_that_falls_silent_warns() -> None:
    left = rows().filter((pl.col("event_time") < moment_us()) | (pl.col("region") != "south"))
    assert said(run(left, arrived(rows()))) == {("warn", "@monitored", "volume", "region=south")}


def test_a_feed_that_is_an_hour_late_warns_and_says_how_late() -> None:
    on_time = arrived(rows())
    late = changed(
        on_time, lambda counts: {c + (9 if c % LOG_SIDE == LATENESS + 3 else 0): n for c, n in counts.items()}
    )
    alerts = run(rows(), late)
    assert said(alerts) == {("warn", f"@{name}", "late", "all") for name in ("inputs", "predictions", "feedback")}
    assert "later than 34 min after their event time; nine of ten used to come within 8 s" in alerts[0].message


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (LOG_SIDE * PREDICTIONS + ARRIVED_TWICE, ("warn", "@predictions", "duplicate", "all")),
        (LOG_SIDE * INPUTS + ARRIVED_FOREIGN, ("page", "@inputs", "type", "all")),
    ],
)
def test_records_that_count_twice_or_not_at_all_are_told(code: int, expected: tuple[str, ...]) -> None:
    few = changed(arrived(rows()), lambda counts: counts | {code: 1})
    many = changed(arrived(rows()), lambda counts: counts | {code: max(counts.values()) // 3})
    assert run(rows(), few) == []
    assert said(run(rows(), many)) == {expected}


def test_predictions_without_a_finite_score_are_told_of_a_model_that_gave_one() -> None:
    without = [
        Part(p.model, p.version, p.role, p.slice, p.axis, p.window_us, np.array([N_SCORED], np.int32), np.array([-5]))
        for p in make_parts(rows().filter(pl.col("event_time") >= moment_us()), profile())
        if p.axis == "event" and p.slice == "all" and N_SCORED in p.codes
    ]
    monitor = begun()
    monitor.add(make_parts(rows().filter(pl.col("event_time") >= FIRST_US + HISTORY_DAYS * DAY_US), profile()))
    monitor.add([*arrived(rows()), *without])
    alert = only([a for a in monitor.advance(FIRST_US + END_DAY * DAY_US) if a.state == "opened"])
    assert said([alert]) == {("page", "@predictions", "unscored", "all")}
    assert "have no finite score" in alert.message


# -- foresight -------------------------------------------------------------------------------------------------------


def watched_until_silence(left: pl.DataFrame) -> Monitor:
    """A monitor that has judged all hours which rows before the silence close."""
    monitor = begun()
    before = left.filter(pl.col("event_time") < moment_us())
    monitor.add(make_parts(before.filter(pl.col("event_time") >= FIRST_US + HISTORY_DAYS * DAY_US), profile()))
    monitor.add(arrived(before))
    assert monitor.advance(int(before["event_time"].max())) == []  # type: ignore[arg-type]
    return monitor


def test_silence_is_foretold_by_the_clock_with_the_alerts_that_a_later_row_gives() -> None:
    left = silent(rows())
    monitor = watched_until_silence(left)
    memory = snapshot(monitor)
    assert monitor.foresee(moment_us(0.5)) == []
    foretold = monitor.foresee(moment_us(5))
    assert snapshot(monitor) == memory
    after = left.filter(pl.col("event_time") >= moment_us(6))
    monitor.add(make_parts(after, profile()))
    monitor.add(arrived(after))
    alerts = [a for a in monitor.advance(moment_us(5)) if a.state != "closed"]
    assert alerts == foretold
    assert {a.subject for a in alerts} >= {"@monitored", "@inputs"}
    assert alerts == [a for a in run(left, arrived(left)) if a.event_time_us <= moment_us(5)]


def test_what_comes_gives_the_same_alerts_in_any_batches_and_after_a_restart() -> None:
    left = silent(rows())
    log = changed(arrived(left), lambda counts: counts | {LOG_SIDE * INPUTS + ARRIVED_FOREIGN: 40})
    expected = run(left, log)
    parts = [*make_parts(left.filter(pl.col("event_time") >= FIRST_US + HISTORY_DAYS * DAY_US), profile()), *log]
    order = np.random.default_rng(4).permutation(len(parts))
    monitor = begun()
    for batch in np.array_split(order, 13):
        monitor.add(parts[i] for i in batch)
    found = []
    for hour in range(HISTORY_DAYS * 24, END_DAY * 24 + 1, 5):
        found += monitor.advance(FIRST_US + hour * HOUR_US)
        monitor = restore(snapshot(monitor), POLICY, profile())
    found += monitor.advance(FIRST_US + END_DAY * DAY_US)
    assert [a for a in found if a.state != "closed"] == expected
    assert {a.detail["rule"] for a in expected} == {"volume", "type"}


def test_the_same_hour_of_another_week_follows_the_clock_on_the_wall() -> None:
    local = LocalHours("America/New_York")
    hour = to_us(datetime(2024, 3, 12, 13, tzinfo=UTC)) // HOUR_US  # 9 h of daylight saving
    day, of_day = local(hour)
    assert of_day == 9
    assert local.hour_at(day - 7, of_day) == hour - 7 * 24 + 1
    skipped = local(to_us(datetime(2024, 3, 10, 12, tzinfo=UTC)) // HOUR_US)[0]
    assert local.hour_at(skipped, 2) is None
