"""How much a row counts: what windows teach, and what that spares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from schemas.profile import FieldSpec, build_feature
from streams.logic.bets import Bets
from streams.logic.edetector import Budget, Running, evaluate
from streams.logic.tempering import DAY, WEEK, Spread

ROWS = 1000
Floats = npt.NDArray[np.float64]
FEATURE = build_feature(FieldSpec("x", "number"), pl.Series(np.random.default_rng(1).normal(size=20_000)))
BETS = Bets.of([FEATURE])


def windows(count: int, tau: float, cycle: float, seed: int, first: int = 0) -> Floats:
    rng, hour = np.random.default_rng(seed), np.arange(first, first + count)
    means = tau * rng.normal(size=count) + cycle * np.sin(2 * np.pi * hour / DAY)
    return np.stack(
        [
            np.bincount(FEATURE.codes(pl.Series(rng.normal(size=ROWS) + mean)), minlength=FEATURE.cell_count)
            for mean in means
        ]
    ).astype(np.float64)


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.2])
def test_the_spread_of_window_means_is_learnt_from_above(tau: float) -> None:
    found = [
        float(Spread.of(windows(48, tau, 0.0, seed), np.zeros(48, np.int64), BETS).location[0]) for seed in range(30)
    ]
    assert np.mean(np.array(found) >= tau**2) >= 0.8  # the upper end of a 90 % interval
    assert np.median(found) <= 2.5 * tau**2 + 1.0 / ROWS


@pytest.mark.parametrize(("hours", "period"), [(30, 1), (48, DAY), (4 * WEEK, WEEK)])
def test_a_season_is_of_the_length_that_was_seen_often_enough(hours: int, period: int) -> None:
    found = Spread.of(windows(hours, 0.0, 0.0, 1), np.arange(hours), BETS)
    assert found.period == period
    assert len(found.season) == (period if period > 1 else 0)


def test_a_daily_cycle_is_taken_out_and_does_not_cost_rows() -> None:
    taught = windows(96, 0.0, 0.3, 3)
    blind, seeing = Spread.of(taught, np.zeros(96, np.int64), BETS), Spread.of(taught, np.arange(96), BETS)
    assert blind.how_much(BETS)(np.array([ROWS])).location[0, 0] < 0.05
    assert seeing.how_much(BETS)(np.array([ROWS])).location[0, 0] > 0.3
    night = windows(1, 0.0, 0.3, 4, first=96 + 6)[0]
    fair = seeing.without_season(night, ROWS, 96 + 6)
    assert fair.sum() == pytest.approx(ROWS)
    p = BETS.shares
    assert ((fair - ROWS * p) ** 2 / p).sum() < 0.3 * ((night - ROWS * p) ** 2 / p).sum()


def test_windows_that_differ_raise_no_alarm_where_they_are_tempered_and_many_where_not() -> None:
    spread = Spread.of(windows(48, 0.1, 0.0, 5), np.zeros(48, np.int64), BETS)
    budget = Budget(np.full(1, 1 / 30), 10_000.0, 10_000.0, 0.01, 0.03)
    alarms = {}
    for name, how_much in (("tempered", spread.how_much(BETS)), ("not", None)):
        running, alarms[name] = Running(8, np.zeros(len(BETS.weights))), 0
        for delta in windows(200, 0.1, 0.0, 6):
            running.add(delta, ROWS)
            found = evaluate(running, BETS, budget, how_much=how_much)
            alarms[name] += int(found.statistic[0] >= budget.line[0])
    assert alarms["tempered"] == 0
    assert alarms["not"] > 20
    for delta in windows(15, 0.1, 0.4, 7, first=6)[:, :]:
        running.add(delta, ROWS)
    moved = np.random.default_rng(8).normal(size=(15, ROWS)) + 0.6
    for row in moved:
        running.add(np.bincount(FEATURE.codes(pl.Series(row)), minlength=FEATURE.cell_count).astype(float), ROWS)
    assert evaluate(running, BETS, budget, how_much=spread.how_much(BETS)).statistic[0] >= budget.line[0]
