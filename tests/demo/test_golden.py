"""The known numbers of the flights: the champion, the planted faults, and what each way of retraining repairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from datetime import date
from typing import Any

import polars as pl
import pytest

from schemas.times import parse_time
from streams.demo import flights
from streams.demo.faults import FAULT_FROM, FAULTS
from streams.demo.testing import Quality, Scores, fit_flights, measure

Model = Callable[[pl.DataFrame], Scores]

pytestmark = pytest.mark.slow

AFTER = date(2013, 5, 14), date(2013, 5, 26)
RETRAIN_AT = parse_time("2013-05-13T05:00:00-04:00")
"""A week of the fault has been seen."""
WEEK_PARAMETERS: dict[str, Any] = {"min_samples_leaf": 40, "max_iter": 100}
TIMEOUT_US = 20_700_000_000


def served(departures: pl.DataFrame, fault: str) -> pl.DataFrame:
    """Departures behind a fault, with the column that says which of two feeds a row came from."""
    version = (pl.col("event_time") >= FAULT_FROM).cast(pl.Float64)
    return FAULTS[fault].apply(departures).with_columns(feed_version=version)


@pytest.fixture(scope="module")
def recipes(departures: pl.DataFrame, champion: Model) -> dict[str, Quality]:
    """Quality on 14 to 26 May behind gate-to-runway, of the champion and of four ways to retrain on 13 May."""
    rows = served(departures, "gate-to-runway")
    known = pl.coalesce("truth_time", pl.col("truth_due") + TIMEOUT_US) < RETRAIN_AT
    seen, broken = rows.filter(known), pl.col("feed_version") == 1
    models = {
        "champion": champion,
        "mixed": fit_flights(seen),
        "without": fit_flights(seen.filter(~broken)),
        "week": fit_flights(seen.filter(broken), **WEEK_PARAMETERS),
        "column": fit_flights(seen, (*flights.FEATURES, "feed_version")),
    }
    judged = flights.between(rows, *AFTER)
    return {name: measure(judged, model(judged)) for name, model in models.items()}


def quality(departures: pl.DataFrame, model: Model, first: date, last: date, fault: str = "none") -> Quality:
    rows = flights.between(served(departures, fault), first, last)
    return measure(rows, model(rows))


def test_the_champion_on_the_healthy_weeks_of_april(departures: pl.DataFrame, champion: Model) -> None:
    found = quality(departures, champion, date(2013, 4, 1), date(2013, 5, 5))
    assert found.n == 32_218
    assert found.auc == pytest.approx(0.8878, abs=0.005)
    assert found.log_loss == pytest.approx(0.3225, abs=0.01)


def test_the_champion_without_a_fault(departures: pl.DataFrame, champion: Model) -> None:
    found = quality(departures, champion, *AFTER)
    assert found.n == 11_528
    assert found.auc == pytest.approx(0.9249, abs=0.005)
    assert found.log_loss == pytest.approx(0.2606, abs=0.01)
    assert found.accuracy == pytest.approx(0.9015, abs=0.005)
    assert found.bias == pytest.approx(0.003, abs=0.01)


def test_the_world_changes_from_22_to_26_april(departures: pl.DataFrame, champion: Model) -> None:
    found = quality(departures, champion, date(2013, 4, 22), date(2013, 4, 26))
    assert found.log_loss == pytest.approx(0.6715, abs=0.03)
    assert found.bias == pytest.approx(-0.182, abs=0.01)


def test_the_fault_hides_from_ranking_and_breaks_calibration(
    departures: pl.DataFrame, champion: Model, recipes: dict[str, Quality]
) -> None:
    healthy, broken = quality(departures, champion, *AFTER), recipes["champion"]
    assert broken.auc == pytest.approx(0.9232, abs=0.005)
    assert broken.log_loss == pytest.approx(0.4899, abs=0.03)
    assert broken.accuracy == pytest.approx(0.801, abs=0.02)
    assert abs(broken.auc - healthy.auc) < 0.01
    assert broken.log_loss - healthy.log_loss > 0.15
    assert broken.bias > 0.15


def test_the_version_column_repairs_it(recipes: dict[str, Quality]) -> None:
    found = recipes["column"]
    assert found.auc == pytest.approx(0.9265, abs=0.005)
    assert found.log_loss == pytest.approx(0.2554, abs=0.01)
    assert found.accuracy == pytest.approx(0.906, abs=0.005)


def test_the_rows_matter_more_than_the_model(recipes: dict[str, Quality]) -> None:
    by_loss = sorted(recipes, key=lambda name: recipes[name].log_loss)
    assert by_loss == ["column", "week", "mixed", "champion", "without"]


def test_a_default_value_in_one_slice_hurts_and_retraining_repairs_a_part(
    departures: pl.DataFrame, champion: Model
) -> None:
    rows = served(departures, "ev-zero")
    seen = rows.filter(pl.coalesce("truth_time", pl.col("truth_due") + TIMEOUT_US) < RETRAIN_AT)
    first, last = date(2013, 5, 13), AFTER[1]
    healthy = quality(departures, champion, first, last).log_loss
    broken = quality(departures, champion, first, last, "ev-zero")
    mended = quality(departures, fit_flights(seen), first, last, "ev-zero").log_loss
    assert broken.auc == pytest.approx(0.8489, abs=0.01)
    assert broken.log_loss == pytest.approx(0.388, abs=0.02)
    assert (broken.log_loss - mended) / (broken.log_loss - healthy) == pytest.approx(0.62, abs=0.15)


def test_two_trainings_give_the_same_scores(departures: pl.DataFrame, champion: Model) -> None:
    rows = flights.between(departures, date(2013, 4, 1), date(2013, 4, 7))
    again = fit_flights(flights.training_table(departures))
    assert astuple(measure(rows, again(rows))) == astuple(measure(rows, champion(rows)))
