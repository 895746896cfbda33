"""The staleness meter: severities, budget shares, learning, restarts, and the same alarms however it is run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest

from schemas.history import history_parts
from schemas.profile import LABEL_FEATURE, SCORE_FEATURE, FieldSpec, Profile, build_profile
from schemas.times import HOUR_US
from streams.logic.counts import Floats, Ints, Layout, LocalHours
from streams.logic.incident import AlertRecord
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.policy import MonitorPolicy
from streams.logic.staleness import Meter, Verdicts, shares_of
from streams.logic.state import restore, snapshot

FIELDS = (FieldSpec("x", "number"), FieldSpec("y", "number"), FieldSpec("c", "category"))
STATIONARY = MonitorPolicy(stationary=True)
HISTORY, HOURS, CHANGE, ROWS = 60, 70, 30, 200


def table(hours: int, seed: int, shift: float = 0.0, first: int = 0) -> pl.DataFrame:
    rng, n = np.random.default_rng(seed), hours * ROWS
    time = (first + np.repeat(np.arange(hours), ROWS)) * HOUR_US + np.tile(np.arange(ROWS), hours) * 1_000_000
    return pl.DataFrame(
        {
            "event_time": time,
            "x": rng.normal(size=n) + shift,
            "y": rng.lognormal(size=n),
            "c": rng.choice(["a", "b", "d"], size=n, p=[0.6, 0.3, 0.1]),
        }
    )


@cache
def profile() -> Profile:
    return build_profile(table(HISTORY, 1).drop("event_time"), FIELDS, model="m")


def meter(policy: MonitorPolicy = STATIONARY) -> Meter:
    return Meter(Layout(profile(), ("all",)), policy, LocalHours("UTC"))


def counts(rows: pl.DataFrame) -> Ints:
    each = [np.bincount(f.codes(rows[f.name]), minlength=f.cell_count) for f in profile().features]
    return np.concatenate(each).astype(np.int64)


def taught(policy: MonitorPolicy = STATIONARY) -> Meter:
    found = meter(policy)
    found.learn((hour, counts(table(1, 100 + hour))) for hour in range(HISTORY))
    return found


@cache
def monitor_bytes() -> bytes:
    rows = table(HISTORY, 1)
    monitor = Monitor(STATIONARY, MonitorInfo("m", "1", "UTC"), profile(), HISTORY * HOUR_US)
    monitor.add(history_parts(rows, profile(), version="1"))
    monitor.advance((HISTORY + 1) * HOUR_US)
    return snapshot(monitor)


@cache
def served() -> pl.DataFrame:
    healthy, moved = table(CHANGE, 2, first=HISTORY), table(HOURS - CHANGE, 3, 0.4, HISTORY + CHANGE)
    return pl.concat([healthy, moved])


def watched(batches: int, cadence: int, *, looks: bool = False, restart: int | None = None) -> list[AlertRecord]:
    """Parts of rows as so many workers make them, merged in some order, judged every so many hours."""
    monitor, rng = restore(monitor_bytes(), STATIONARY, profile()), np.random.default_rng(batches)
    worker = rng.integers(0, batches, served().height)
    parts = [
        part
        for each in range(batches)
        for part in history_parts(served().filter(pl.Series(worker == each)), profile(), version="1")
    ]
    alerts: list[AlertRecord] = []
    for hour in range(HISTORY + 1, HISTORY + HOURS + 2, cadence):
        until = min(hour + cadence, HISTORY + HOURS + 1)
        mine = [p for p in parts if hour - 1 <= p.window_us // HOUR_US < until]
        for at in rng.permutation(len(mine)):
            monitor.add([mine[at]])
            if looks:
                monitor.look()
        parts = [p for p in parts if p.window_us // HOUR_US >= until]
        alerts += monitor.advance(until * HOUR_US)
        if restart is not None and hour >= restart:
            monitor, restart = restore(snapshot(monitor), STATIONARY, profile()), None
    return alerts


def test_a_stationary_stream_that_moves_is_told_of_once_with_its_evidence() -> None:
    found = [alert for alert in watched(1, 1) if alert.channel == "stale"]
    assert [(a.severity, a.state, a.subject) for a in found if a.severity == "page"] == [("page", "opened", "x")]
    page = next(a for a in found if a.severity == "page")
    assert HISTORY + CHANGE < page.event_time_us // HOUR_US <= HISTORY + CHANGE + 6
    assert abs(page.detail["since_us"] / HOUR_US - HISTORY - CHANGE) <= 1
    assert page.detail["level"] == "page"
    assert page.detail["affected"] == ["x"]
    assert page.detail["eps"] == pytest.approx(0.4, abs=0.15)
    assert page.detail["orders"] >= 0
    assert page.detail["verdict"] == "stale"
    assert page.message.startswith("x left training at ")


@pytest.mark.parametrize(
    ("batches", "cadence", "looks", "restart"),
    [(3, 1, True, None), (2, 7, False, None), (1, 5, False, 95), (4, 40, False, None)],
)
def test_the_same_stream_gives_the_same_alarms_bit_for_bit(
    batches: int, cadence: int, looks: bool, restart: int | None
) -> None:
    expected = watched(1, 1)
    assert expected
    assert watched(batches, cadence, looks=looks, restart=restart) == expected


def test_any_other_stream_wakes_nobody() -> None:
    policy = MonitorPolicy()
    monitor = Monitor(policy, MonitorInfo("m", "1", "UTC"), profile(), HISTORY * HOUR_US)
    monitor.add(history_parts(pl.concat([table(HISTORY, 1), served()]), profile(), version="1"))
    assert [a for a in monitor.advance((HISTORY + HOURS) * HOUR_US) if a.channel == "stale"] == []
    assert monitor.staleness()[0].feature == "x"
    assert monitor.staleness()[0].level == "warn"


def moved(shift: float, hours: int, policy: MonitorPolicy = STATIONARY, **changes: Floats) -> Meter:
    found = taught(policy)
    for hour in range(HISTORY, HISTORY + hours):
        rows = table(1, 500 + hour, shift)
        found.add(hour, counts(rows.with_columns(**{name: pl.Series(x[: rows.height]) for name, x in changes.items()})))
    return found


def test_severities_follow_the_effect() -> None:
    def level(meter: Meter, feature: str = "x") -> str:
        return next(each.level for each in meter.read().features if each.feature == feature)

    assert level(moved(0.0, 40)) == "quiet"
    assert level(moved(0.08, 150)) == "info"
    assert level(moved(0.35, 24)) == "page"
    assert level(moved(0.35, 24, MonitorPolicy())) == "warn"
    assert level(moved(1.0, 8)) == "critical"
    nulls = np.where(np.arange(ROWS) % 6 == 0, np.nan, np.random.default_rng(1).normal(size=ROWS))
    lost = taught()
    for hour in range(HISTORY, HISTORY + 8):
        rows = table(1, hour).with_columns(x=pl.Series(nulls).fill_nan(None))
        lost.add(hour, counts(rows))
    assert level(lost) == "critical"
    fresh = np.where(np.arange(ROWS) % 12 == 0, "z", "a")
    assert level(moved(0.0, 8, c=fresh), "c") == "critical"


def test_what_is_still_wrong_stays_open_and_what_is_back_does_not() -> None:
    found = moved(0.5, 6)
    told = found.judge()
    assert [said.feature for said in told.told] == ["x"]
    assert found.judge().told == ()
    assert found.judge().still == ("x",)
    for hour in range(12):
        found.add(HISTORY + 6 + hour, counts(table(1, 900 + hour)))
        still = found.judge()
        assert still.told == ()
    assert still.still == ()


def test_somebody_who_says_what_it_was_starts_the_feature_anew() -> None:
    found = moved(0.5, 6)
    assert found.judge().told
    found.restart(["x", "unheard of"])
    assert found.judge() == Verdicts((), (), False, ())


def test_without_windows_to_learn_from_only_skew_is_told_until_there_are_some() -> None:
    found = meter()
    for hour in range(47):
        found.add(hour, counts(table(1, hour, 0.1)))
        reading = found.look()
        assert reading.is_learning
        assert all(each.orders == -np.inf for each in reading.features)
    assert found.read().features[0].skew_orders > 0  # everything since deployment against training needs no windows
    found.add(47, counts(table(1, 47, 0.1)))
    assert not found.look().is_learning
    assert found.restarts.tolist() == [48, 48, 48]
    assert found.running.deltas == 48
    for hour in range(48, 54):
        found.add(hour, counts(table(1, hour, 0.9)))
    assert found.read().features[0].orders > 0


def test_skew_is_told_once() -> None:
    found = taught()
    for hour in range(HISTORY, HISTORY + 3):
        found.add(hour, counts(table(1, hour, 0.6)))
    found.restarts[:] = found.running.deltas  # no start counts: only E0 speaks
    assert [said.feature for said in found.judge().told] == ["x"]
    assert found.told_skew.tolist() == [True, False, False]
    assert found.judge().told == ()


def test_a_look_ahead_sees_the_open_hour_and_changes_nothing() -> None:
    found = moved(0.0, 20)
    before = found.read()
    ahead = found.look([(HISTORY + 20, counts(table(1, 1, 2.0)))])
    assert ahead.features[0].orders > before.features[0].orders
    assert ahead.windows == before.windows + 1
    assert found.read() == before


def test_the_models_answers_weigh_more_and_the_shares_add_up() -> None:
    many = [*(f"f{i}" for i in range(98)), SCORE_FEATURE, LABEL_FEATURE]
    shares = shares_of(many)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(10 / 100)
    few = shares_of(["f", "g", SCORE_FEATURE])
    assert few.sum() == pytest.approx(1.0)
    assert few[-1] == 0.5


def test_an_hour_without_rows_is_no_window() -> None:
    found = moved(0.0, 3)
    found.add(HISTORY + 3, np.zeros(found.layout.columns, np.int64))
    assert found.running.deltas == 3


def test_a_feature_that_training_knows_nothing_of_is_left_out_and_takes_no_share() -> None:
    whole = profile()
    nothing = replace(
        whole.features[0], counts=(0,) * whole.features[0].cell_count, weights=(0.5,) * whole.features[0].cell_count
    )
    found = Meter(
        Layout(replace(whole, features=(nothing, *whole.features[1:])), ("all",)), STATIONARY, LocalHours("UTC")
    )
    found.learn((hour, counts(table(1, 100 + hour))) for hour in range(HISTORY))
    for hour in range(HISTORY, HISTORY + 5):
        found.add(hour, counts(table(1, hour, 3.0)))
    assert [each.feature for each in found.read().features] == ["y", "c"]
    assert [each.feature for each in found.look().features] == ["y", "c"]
    assert found.judge() == Verdicts((), (), False, ())
    assert found.budget.shares.tolist() == [0.0, 0.5, 0.5]
    empty = Meter(Layout(replace(whole, features=()), ("all",)), STATIONARY, LocalHours("UTC"))
    empty.add(0, np.zeros(0, np.int64))
    assert empty.running.deltas == 0
