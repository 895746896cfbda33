"""Silence is told by the clock while no row closes an hour, once, and taken back when the rows come after all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from schemas.database import open_database, write
from schemas.events import topic
from schemas.profile import Profile
from schemas.times import DAY_US, HOUR_US
from streams.foresight import LIVE_US, SLACK_US, TAKEN_BACK, Foresight
from streams.logic.incident import AlertRecord
from streams.logic.monitor import Monitor
from streams.logic.policy import MonitorPolicy
from streams.logic.state import restore, snapshot
from streams.logic.testing import FIRST_US, World, learn_profile, make_monitor, make_parts
from streams.raised import keep_alert
from streams.runtime import as_json
from streams.tables import source_partition

DAYS = 29
POLICY = MonitorPolicy(baseline_days_min=60)
SILENT_US = FIRST_US + 28 * DAY_US + 10 * HOUR_US


@cache
def rows() -> pl.DataFrame:
    return World(DAYS, rows_an_hour=30).served()


@cache
def profile() -> Profile:
    return learn_profile(rows())


@cache
def judged() -> bytes:
    monitor = make_monitor(profile(), 1, POLICY)
    before = rows().filter(pl.col("event_time") < SILENT_US)
    monitor.add(make_parts(before, profile()))
    assert monitor.advance(int(before["event_time"].max())) == []  # type: ignore[arg-type]
    return snapshot(monitor)


def monitor_before_silence() -> Monitor:
    return restore(judged(), POLICY, profile())


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    opened = open_database(f"sqlite:///{tmp_path / 'f.db'}")
    yield opened
    opened.dispose()


def keep(engine: sa.Engine, alerts: list[AlertRecord]) -> None:
    with write(engine) as connection:
        for alert in alerts:
            record = asdict(alert) | {
                "event_time": alert.event_time_us, "window_start": alert.window_start_us,
                "window_end": alert.window_end_us, "detail": as_json(alert.detail), "topic": None, "partition": None,
                "offset": None,
            }  # fmt: skip
            keep_alert(connection, record, {})


def read_until(engine: sa.Engine, watermark_us: int, updated_us: int) -> None:
    row = {"cluster": "c", "topic": topic("predictions"), "partition": 0, "folded": 0, "end": 1, "counters": {}}
    with write(engine) as connection:
        connection.execute(sa.insert(source_partition).values(**row, watermark_us=watermark_us, updated_us=updated_us))


def test_a_live_log_is_awaited_and_a_replay_is_not(engine: sa.Engine) -> None:
    foresight = Foresight(engine)
    assert foresight.live_until("c", SILENT_US) is None
    read_until(engine, SILENT_US, SILENT_US + HOUR_US)
    assert foresight.live_until("c", SILENT_US + 5 * HOUR_US) == SILENT_US + 4 * HOUR_US
    assert foresight.live_until("other", SILENT_US) is None
    with write(engine) as connection:
        connection.execute(sa.update(source_partition).values(updated_us=SILENT_US + 60_000_000))
    assert foresight.live_until("c", SILENT_US) == SILENT_US - SLACK_US
    with write(engine) as connection:
        connection.execute(sa.update(source_partition).values(updated_us=SILENT_US + LIVE_US + 1))
    assert foresight.live_until("c", SILENT_US) is None


def test_silence_is_told_once_also_after_a_restart(engine: sa.Engine) -> None:
    monitor, foresight = monitor_before_silence(), Foresight(engine)
    assert foresight.look(monitor, SILENT_US + HOUR_US // 2) == []
    told = foresight.look(monitor, SILENT_US + 4 * HOUR_US)
    assert [(a.state, a.subject, a.detail["rule"]) for a in told] == [("opened", "@monitored", "volume")]
    assert foresight.look(monitor, SILENT_US + 5 * HOUR_US) == []
    keep(engine, told)
    assert Foresight(engine).look(monitor_before_silence(), SILENT_US + 5 * HOUR_US) == []


def test_what_was_foretold_and_came_true_stays_and_closes_with_its_incident(engine: sa.Engine) -> None:
    monitor, foresight = monitor_before_silence(), Foresight(engine)
    told = foresight.look(monitor, SILENT_US + 4 * HOUR_US)
    monitor.add(make_parts(rows().filter(pl.col("event_time") >= SILENT_US + 6 * HOUR_US), profile()))
    found = monitor.advance(SILENT_US + 8 * HOUR_US)
    assert found == told
    assert foresight.take_back(monitor, found) == []
    assert foresight.take_back(monitor, []) == []


def test_what_was_foretold_is_taken_back_when_the_rows_come_after_all(engine: sa.Engine) -> None:
    monitor, foresight = monitor_before_silence(), Foresight(engine)
    told = foresight.look(monitor, SILENT_US + 4 * HOUR_US)
    keep(engine, told)
    monitor.add(make_parts(rows().filter(pl.col("event_time") >= SILENT_US), profile()))
    found = monitor.advance(SILENT_US + 8 * HOUR_US)
    assert found == []
    restarted = Foresight(engine)
    assert restarted.take_back(monitor_before_silence(), found) == []  # not judged yet, as far as this one knows
    (back,) = foresight.take_back(monitor, found)
    assert (back.state, back.incident_id, back.message) == ("closed", told[0].incident_id, TAKEN_BACK)
    assert restarted.take_back(monitor, found) == [back], "it has recalled it before the hours were judged"
    keep(engine, [back])
    assert Foresight(engine).look(monitor, SILENT_US + 8 * HOUR_US) == []
