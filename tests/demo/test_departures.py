"""The table of departures against the files, counted and computed another way."""

from __future__ import annotations

import zipfile
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas.times import MINUTE_US, parse_time
from streams.demo import departures as source
from streams.demo.flights import find_data

SAMPLE = 200


@pytest.fixture(scope="module")
def raw() -> pl.DataFrame:
    """Every scheduled flight, with its times computed from the files as simply as possible."""
    with zipfile.ZipFile(find_data() / "flights.csv.zip") as packed:
        frame = pl.read_csv(packed.read("flights.csv"), null_values="NA", infer_schema_length=None)
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC").dt.epoch("us")
    frame = frame.with_columns(scheduled=hour + pl.col("minute") * MINUTE_US)
    return frame.with_columns(left=pl.col("scheduled") + pl.col("dep_delay") * MINUTE_US)


@pytest.fixture(scope="module")
def sample(departures: pl.DataFrame) -> list[dict[str, object]]:
    """Some departures of each kind: usual ones, and ones in the worst hours, where queues are long."""
    busy = departures.filter(pl.col("origin_waiting") > 20).sample(SAMPLE // 2, seed=1)
    return pl.concat([departures.sample(SAMPLE // 2, seed=0), busy]).to_dicts()


def test_the_files_hold_the_known_flights(raw: pl.DataFrame) -> None:
    cancelled, left = raw.filter(pl.col("dep_delay").is_null()), raw.filter(pl.col("dep_delay").is_not_null())
    assert (raw.height, cancelled.height, left.height) == (336_776, 8_255, 328_521)
    assert (raw["dest"].n_unique(), raw["carrier"].n_unique()) == (105, 16)


def test_a_departure_is_a_row_and_a_diverted_flight_has_no_truth(departures: pl.DataFrame) -> None:
    assert departures.height == 328_521
    diverted = departures.filter(pl.col("truth_time").is_null())
    assert diverted.height == 1_175
    assert diverted["label"].null_count() == diverted["arr_delay"].null_count() == 1_175
    assert departures.drop_nulls("truth_time")["label"].null_count() == 0


def test_every_departure_has_its_own_id_that_names_it(departures: pl.DataFrame) -> None:
    assert departures["prediction_id"].n_unique() == departures.height
    assert departures["prediction_id"][0] == "2013-01-01-UA-1545-EWR"


def test_rows_of_the_periods_are_counted_by_local_days(departures: pl.DataFrame) -> None:
    periods = {
        32_218: (date(2013, 4, 1), date(2013, 5, 5)),
        6_359: (date(2013, 5, 6), date(2013, 5, 12)),
        11_528: (date(2013, 5, 14), date(2013, 5, 26)),
        250_375: (date(2013, 4, 1), date(2013, 12, 31)),
    }
    assert {departures.filter(pl.col("day").is_between(*days)).height: days for days in periods.values()} == periods


def test_rows_are_in_event_order_and_no_truth_comes_before_its_departure(departures: pl.DataFrame) -> None:
    assert departures["event_time"].is_sorted()
    arrived = departures.drop_nulls("truth_time")
    assert (arrived["truth_time"] > arrived["event_time"]).all()
    assert (arrived["ground_min"] > 0).all(), "a slip of an hour in a time zone would make this negative"


def test_delays_of_truth_are_as_known(departures: pl.DataFrame) -> None:
    minutes = ((departures["truth_time"] - departures["event_time"]) / MINUTE_US).drop_nulls()
    assert [minutes.quantile(q, "nearest") for q in (0.01, 0.5, 0.99, 1.0)] == [55, 160, 407, 738]


def test_the_truth_is_due_when_lateness_is_decided(departures: pl.DataFrame) -> None:
    landed_on_time = departures.filter(pl.col("label") == "on_time")
    assert (landed_on_time["truth_time"] <= landed_on_time["truth_due"]).all()
    late = departures.filter(pl.col("label") == "late")
    assert (late["truth_time"] > late["truth_due"]).all(), "late is what has not landed when the truth is due"
    assert (departures["truth_due"] >= departures["event_time"]).all()


def test_state_of_the_airport_equals_a_count_by_hand(raw: pl.DataFrame, sample: list[dict[str, object]]) -> None:
    for row in sample:
        now = row["event_time"]
        assert isinstance(now, int)
        here = raw.filter(pl.col("origin") == row["origin"])
        recent = here.filter((pl.col("left") > now - 120 * MINUTE_US) & (pl.col("left") <= now))["dep_delay"]
        assert row["origin_mean_delay"] == (pytest.approx(recent.mean()) if len(recent) > 2 else None)
        assert row["origin_late_share"] == (pytest.approx((recent > 15).mean()) if len(recent) > 2 else None)
        queue = here.filter((pl.col("scheduled") > now - 120 * MINUTE_US) & (pl.col("scheduled") <= now))
        gone = queue.filter(pl.col("left") <= now)
        assert row["origin_waiting"] == queue.height - gone.height


def test_state_of_the_carrier_equals_a_count_by_hand(raw: pl.DataFrame, sample: list[dict[str, object]]) -> None:
    for row in sample:
        now = row["event_time"]
        assert isinstance(now, int)
        window = (pl.col("left") > now - 180 * MINUTE_US) & (pl.col("left") <= now)
        recent = raw.filter(window & (pl.col("carrier") == row["carrier"]))["dep_delay"]
        assert row["carrier_late_share"] == (pytest.approx((recent > 15).mean()) if len(recent) > 2 else None)


def test_weather_is_the_last_observation_and_never_old(sample: list[dict[str, object]]) -> None:
    weather = pl.read_csv(find_data() / "weather.csv", null_values="NA", infer_schema_length=None)
    weather = weather.with_columns(pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ").dt.epoch("us"))
    for row in sample:
        now = row["event_time"]
        assert isinstance(now, int)
        at = pl.col("time_hour").is_between(now - 360 * MINUTE_US, now)
        seen = weather.filter(at & (pl.col("origin") == row["origin"])).sort("time_hour").tail(1)
        expected = seen.row(0, named=True) if seen.height else dict.fromkeys(source.WEATHER)
        assert {name: row[name] for name in source.WEATHER} == {name: expected[name] for name in source.WEATHER}


def test_the_weather_feed_is_missing_on_31_december(departures: pl.DataFrame) -> None:
    missing = departures.filter(pl.col("visib").is_null())
    assert missing.height == 765, "760 at the scheduled moment; five more left later than the feed's last 6 hours"
    assert missing["event_time"].min() >= parse_time("2013-12-31T00:00:00-05:00")  # type: ignore[operator]


def test_features_know_nothing_of_the_future(departures: pl.DataFrame, tmp_path: Path) -> None:
    """The same flights, cut from a world in which everything scheduled after 10 January never happened."""
    files = find_data()
    for name in ("weather.csv", "airports.csv"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    with zipfile.ZipFile(files / "flights.csv.zip") as packed:
        head, *lines = packed.read("flights.csv").decode().splitlines()
    lines = [line for line in lines if line.startswith(tuple(f"2013,1,{day}," for day in range(1, 11)))]
    with zipfile.ZipFile(tmp_path / "flights.csv.zip", "w") as packed:
        packed.writestr("flights.csv", "\n".join([head, *lines]))
    before = pl.col("event_time") < parse_time("2013-01-10T23:00:00-05:00")
    told = ["prediction_id", "event_time", *source.FEATURES]
    cut = source.read_departures(tmp_path).filter(before).select(told)
    assert cut.height > 8_000
    assert cut.equals(departures.filter(before).select(told))


def test_clock_changes_shift_nothing(departures: pl.DataFrame) -> None:
    for sunday in (date(2013, 3, 10), date(2013, 11, 3)):
        rows = departures.filter(pl.col("day") == sunday).drop_nulls("truth_time")
        before = departures.filter(pl.col("day") == sunday - timedelta(days=7))
        assert rows["ground_min"].median() == pytest.approx(before["ground_min"].median(), abs=5)


def test_usual_minutes_are_learnt_before_april(departures: pl.DataFrame) -> None:
    healthy = departures.filter((pl.col("day") < date(2013, 4, 1)) & (pl.col("origin") == "JFK"))
    at_nine = healthy.filter(pl.col("sched_min") // 60 == 9)["ground_min"].median()
    later = departures.filter(
        (pl.col("day") > date(2013, 4, 1)) & (pl.col("origin") == "JFK") & (pl.col("sched_min") // 60 == 9)
    )
    assert np.unique(later["usual_ground_min"].to_numpy()).tolist() == [at_nine]
