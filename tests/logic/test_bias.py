"""Channel B of a regression: its answers state no variance, so that the weeks before have to say what is usual."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from schemas.parts import MICRO, N_TRUTH, SUM_P, SUM_PQ, SUM_Y
from schemas.profile import FieldSpec, build_profile
from schemas.times import HOUR_US
from streams.logic.bias import BiasSpread, UsualErrors, judge, usual_bias, window_sums
from streams.logic.counts import SCALARS, HourlyCounts, Layout, LocalHours
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.policy import MonitorPolicy
from streams.logic.state import restore, snapshot

POLICY, LOCAL = MonitorPolicy(), LocalHours("UTC")
DAYS, ROWS_AN_HOUR = 42, 10
LAST = DAYS * 24 - 1


def counts(fault: float = 0.0) -> HourlyCounts:
    """Six weeks, with errors of 1 by night and 3 by day; on the last day every answer is too high, too."""
    rng = np.random.default_rng(5)
    profile = build_profile(pl.DataFrame({"x": [0.0, 1.0]}), [FieldSpec("x", "number")], model="m")
    found = HourlyCounts(Layout(profile, ("all",)))
    for hour in range(DAYS * 24):
        error = rng.normal(size=ROWS_AN_HOUR) * (3.0 if hour % 24 >= 12 else 1.0)
        error += fault if hour >= (DAYS - 1) * 24 else 0.0
        sums = np.zeros((1, SCALARS), np.int64)
        sums[0, [N_TRUTH, SUM_P, SUM_Y, SUM_PQ]] = (
            ROWS_AN_HOUR, round(error.sum() * MICRO), 0, round(np.square(error).sum() * MICRO),
        )  # fmt: skip
        found.due[hour] = sums
    return found


def strongest(fault: float, *, knows_usual: bool) -> float:
    given = counts(fault)
    errors = UsualErrors.of(given, LOCAL, POLICY, DAYS - 1, lambda _hour: True) if knows_usual else None
    usual = usual_bias(given, LOCAL, POLICY, DAYS - 1, lambda _hour: True)
    spread = BiasSpread.empty(len(POLICY.bias_hours), 1).correlation(POLICY)
    found = judge(window_sums(given, POLICY.bias_hours, LAST, errors), usual, spread, ("all",), POLICY)
    return max((abs(window.z) for window in found), default=0.0)


def test_the_errors_of_a_fault_do_not_hide_it() -> None:
    least = POLICY.spread_factor * POLICY.bias_prior_icc
    assert strongest(50.0, knows_usual=False) < 1 / math.sqrt(least), "however wrong the answers are"
    assert strongest(50.0, knows_usual=True) > 10.0
    assert strongest(0.0, knows_usual=True) == 0.0


def test_errors_are_known_by_the_hour_and_a_slice_without_a_past_is_judged_by_its_own() -> None:
    known = UsualErrors.of(counts(), LOCAL, POLICY, DAYS - 1, lambda _hour: True)
    assert 0.5 < known.at(3)[0] < 2.0
    assert 7.0 < known.at(15)[0] < 11.0
    unknown = UsualErrors.of(counts(), LOCAL, POLICY, DAYS - 1, lambda _hour: False)
    assert np.isnan(unknown.mean).all()
    own, same = (window_sums(counts(), POLICY.bias_hours, LAST, each).variance for each in (None, unknown))
    assert (own == same).all()


def test_a_restart_amid_a_fault_gives_the_same_alerts() -> None:
    given = counts(50.0)
    start_us = 30 * 24 * HOUR_US
    monitor = Monitor(POLICY, MonitorInfo("m", "1", "UTC"), given.layout.profile, start_us, is_history_honest=True)
    monitor.counts = given
    assert monitor.advance((LAST - 22) * HOUR_US) == []
    again = restore(snapshot(monitor), POLICY, given.layout.profile)
    expected = monitor.advance((LAST + 1) * HOUR_US)
    assert {alert.channel for alert in expected} >= {"bias"}
    assert again.advance((LAST + 1) * HOUR_US) == expected
    assert snapshot(again) == snapshot(monitor)


def test_a_window_that_scatters_more_than_usual_is_measured_by_that() -> None:
    given, hour = counts(), LAST
    for past in range(hour - 7, hour + 1):
        given.due[past][0, SUM_PQ] *= 100
    errors = UsualErrors.of(given, LOCAL, POLICY, DAYS - 1, lambda _hour: True)
    own = window_sums(given, POLICY.bias_hours, hour).variance[0, 0]
    assert own * 0.9 < window_sums(given, POLICY.bias_hours, hour, errors).variance[0, 0] <= own
